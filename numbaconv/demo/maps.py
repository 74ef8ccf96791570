"""The training data: the MNI152 T1 template and its map of grey matter, which ship inside one package.

ICBM 2009a nonlinear symmetric templates of the Montreal Neurological Institute, 197 x 233 x 189 voxels of 1 mm: the average of 152
people's T1-weighted scans, brain only, and the probability that a voxel is grey matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arrays import AnyArray
from .brain import installed_file, read_nifti

PACKAGE = "nilearn"
T1 = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
GREY = "mni_icbm152_gm_tal_nlin_sym_09a_converted.nii.gz"


@dataclass(frozen=True)
class Maps:
    """T1 and grey-matter probability, float32 in [0, 1], (D, H, W): inferior to superior, posterior to anterior, left to right.

    slab : the coronal planes (a range along H) that are held out
    """

    t1: AnyArray
    grey: AnyArray
    slab: tuple[int, int]

    def held_out(self) -> tuple[AnyArray, AnyArray]:
        planes = slice(*self.slab)
        return np.ascontiguousarray(self.t1[:, planes]), np.ascontiguousarray(self.grey[:, planes])

    def positions(self, rng: np.random.Generator, count: int, size: int) -> AnyArray:
        """First corners (count, 3) of random cubes of ``size`` voxels, each at least a third brain, that miss the slab."""
        low, high = self.slab
        starts = [np.arange(n - size + 1) for n in self.t1.shape]
        starts[1] = starts[1][(starts[1] + size <= low) | (starts[1] >= high)]
        found: list[AnyArray] = []
        while len(found) < count:
            corner = np.array([rng.choice(axis) for axis in starts])
            if (cube(self.t1, corner, size) > 0).mean() >= 1 / 3:
                found.append(corner)
        return np.array(found)


def cube(volume: AnyArray, corner: AnyArray, size: int) -> AnyArray:
    """The cube of ``size`` voxels that starts at ``corner``, as a view."""
    return volume[tuple(slice(start, start + size) for start in corner.tolist())]


def load_maps(slab_planes: int, multiple: int) -> Maps:
    """Both volumes, cropped to the brain and to sizes that are whole multiples; the slab lies in the middle.

    The template is symmetric: a slab across both halves keeps no mirror image of itself among the training data.
    """
    t1, grey = (read_nifti(installed_file(PACKAGE, name, "the T1 template with its map of grey matter", "train")) for name in (T1, GREY))
    inside = [np.flatnonzero(t1.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    box = []
    for indices, length in zip(inside, t1.shape):
        size = -(-(indices[-1] + 1 - indices[0]) // multiple) * multiple
        start = min(indices[0], length - size)
        box.append(slice(start, start + size))
    t1, grey = (volume[tuple(box)].astype(np.float32) / np.float32(255) for volume in (t1, grey))
    start = (t1.shape[1] - slab_planes) // 2
    return Maps(t1, grey, (start, start + slab_planes))
