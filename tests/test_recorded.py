"""torch's outcome in 501 recorded cases, each in exactly one class of the table in ``recorded.py``."""

from __future__ import annotations

import pytest

from . import recorded
from .recorded import OUTCOMES, RECORDED, ROWS, TABLE


def test_every_recorded_id_is_in_exactly_one_class() -> None:
    listed = [case_id for row in TABLE for case_id in row.ids.split()]
    assert sorted(case_id for case_id in listed if listed.count(case_id) > 1) == []
    assert sorted(RECORDED.keys() - set(listed)) == [], "recorded, but not in the table"
    assert sorted(set(listed) - RECORDED.keys()) == [], "in the table, but not recorded"
    assert {row.outcome for row in TABLE} == set(OUTCOMES)
    assert len(RECORDED) == 501


def test_every_deviation_has_its_reason() -> None:
    assert [row.ids for row in TABLE if row.outcome not in ("reproduced", "refused") and not row.reason] == []
    assert [row.ids for row in TABLE if bool(row.error) != (row.outcome in ("refused", "stricter"))] == []
    assert recorded.EXPECTED.keys() == set(recorded.ids("extension"))


@pytest.mark.parametrize("case_id", recorded.ids("reproduced"))
def test_reproduced(case_id: str) -> None:
    recorded.check_outcome(case_id, recorded.run(case_id))


@pytest.mark.parametrize("case_id", recorded.ids("refused", "stricter"))
def test_refused(case_id: str) -> None:
    row, outcome = ROWS[case_id], RECORDED[case_id]["outcome"]
    assert outcome["ok"] is (row.outcome == "stricter"), "refused means that torch refuses too, stricter that it does not"
    kind, word = row.error.split()
    error = {"ValueError": ValueError, "TypeError": TypeError}[kind]
    with pytest.raises(error, match=rf"\b{word}\b") as caught:
        recorded.run(case_id)
    assert type(caught.value) is error and "\n" not in str(caught.value)


@pytest.mark.parametrize("case_id", recorded.ids("extension"))
def test_extension(case_id: str) -> None:
    recorded.check_extension(case_id, recorded.run(case_id))
