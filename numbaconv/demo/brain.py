"""The demo's data: a real MRI volume that ships inside a package of the ``demo`` extra.

ICBM 2009c nonlinear symmetric T1 template of the Montreal Neurological Institute, brain only: the average of 152 people's
T1-weighted scans, 193 x 229 x 193 voxels of 1 mm.  The package, swane-supplement, is never imported: the file is found by the
record of what was installed, and read with gzip and NumPy alone.

Source of the file format: https://nifti.nimh.nih.gov/nifti-1
"""

from __future__ import annotations

import gzip
import importlib.metadata
import math
from pathlib import Path

import numpy as np

from ..arguments import integer
from ..arrays import AnyArray

PACKAGE = "swane-supplement"
FILE = "mni_icbm152_t1_tal_nlin_sym_09c_brain.nii.gz"
SMALLEST_CROP = 8

_HEADER_BYTES = 348
_DTYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2"}


def brain_path() -> Path:
    """Where the volume was installed; FileNotFoundError, with what to install, where it wasn't."""
    return installed_file(PACKAGE, FILE, "the MRI volume", "demo")


def installed_file(package: str, name: str, what: str, extra: str) -> Path:
    """The place of a file that a package brought; FileNotFoundError, naming ``what`` and the extra to install, where it did not."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == name:
            return Path(str(file.locate()))
    raise FileNotFoundError(f'{what} comes with the package {package}, which is not installed: pip install "numbaconv[{extra}]"')


def load_brain(crop: int | None = None) -> AnyArray:
    """The volume as float32 in [0, 1], shape (D, H, W): inferior to superior, posterior to anterior, left to right.

    crop : keep the central cube of that many voxels, at least 8; along an axis that is shorter, all of it.
    """
    if crop is not None:
        crop = integer("crop", crop, SMALLEST_CROP)
    volume = read_nifti(brain_path())
    if crop is not None:
        volume = volume[tuple(slice((n - min(n, crop)) // 2, (n - min(n, crop)) // 2 + min(n, crop)) for n in volume.shape)]
    scaled: AnyArray = volume.astype(np.float32) / np.float32(volume.max())
    return scaled


def read_nifti(path: str | Path) -> AnyArray:
    """The first volume of a NIfTI-1 file (.nii or .nii.gz) as (z, y, x), unscaled; the orientation is the file's own.

    ValueError where it isn't a single NIfTI-1 file with real numbers in it.
    """
    data = Path(path).read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    if len(data) < _HEADER_BYTES or data[344:347] != b"n+1":
        raise ValueError(f"{path} is not a NIfTI-1 file in one piece: the header must end in 'n+1'")
    order = "<" if int.from_bytes(data[:4], "little") == _HEADER_BYTES else ">"
    shape = np.frombuffer(data, f"{order}i2", 3, 42).tolist()
    code = int(np.frombuffer(data, f"{order}i2", 1, 70)[0])
    if code not in _DTYPES:
        raise ValueError(f"{path} must hold real numbers, got the NIfTI datatype code {code}")
    offset = int(np.frombuffer(data, f"{order}f4", 1, 108)[0])
    return np.frombuffer(data, order + _DTYPES[code], math.prod(shape), offset).reshape(shape[::-1])
