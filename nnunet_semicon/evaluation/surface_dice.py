"""Normalized surface Dice (NSD): the part of both surfaces that lies within a tolerance of the other one.

Nikolov et al., Clinically Applicable Segmentation of Head and Neck Anatomy (2021). Counting boundary voxels would
weigh a slanted surface by its number of steps, so the surface is a mesh here: where the voxels around a corner of the
voxel grid are not all alike, that corner carries a surface element ("surfel"). Its area is that of marching cubes, from
the package ``surface-distance`` of the same authors.

Distances are looked up in a k-d tree, as for HD95, and not in the package's distance maps: for a large volume these
take six times the time and three times the memory, and its release 0.1 calls functions that SciPy 2 removes.
"""

from collections.abc import Sequence
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from surface_distance.lookup_tables import (
    create_table_neighbour_code_to_contour_length,
    create_table_neighbour_code_to_surface_area,
)

from nnunet_semicon.evaluation.surface import Mask, distances

ROUNDING = 1e-6  # mm; spacings are float32 in a NIfTI header, so a distance may be this much above the tolerance


def nsd(prediction: Mask, reference: Mask, spacing: Sequence[float], tolerance: float) -> float:
    """Return the normalized surface Dice.

    Args:
        prediction: bool, 2d or 3d, not empty.
        reference: the same shape, not empty.
        spacing: voxel size along each axis, mm.
        tolerance: largest distance between surfaces that counts as agreement, mm.

    Returns:
        In [0, 1]; 1: no part of either surface is further than ``tolerance`` from the other one.
    """
    points, areas = zip(*(surfels(mask, spacing) for mask in (prediction, reference)), strict=True)
    between = distances(*points)
    near = [away <= tolerance + ROUNDING for away in (between.to_reference, between.to_prediction)]
    return float(sum(a[n].sum() for a, n in zip(areas, near, strict=True)) / sum(a.sum() for a in areas))


def surfels(mask: Mask, spacing: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return positions, (N, d), and areas, (N,), of the surface elements, in mm and mm^2 (in 2d: mm of contour)."""
    padded = np.pad(mask, 1)
    codes = np.zeros([size - 1 for size in padded.shape], np.uint8)
    for corner in product((0, 1), repeat=mask.ndim):
        codes <<= 1  # the first corner is the highest bit, as in the package's tables
        codes |= padded[tuple(slice(c, size - 1 + c) for c, size in zip(corner, padded.shape, strict=True))]
    everywhere = 2 ** (2**mask.ndim) - 1
    positions = np.argwhere((codes != 0) & (codes != everywhere))
    areas = _area_of_code(tuple(map(float, spacing)))
    in_mm: NDArray[np.float64] = np.multiply(positions, spacing, dtype=np.float64)
    return in_mm, areas[codes[tuple(positions.T)]]


@cache
def _area_of_code(spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the area of the surface for every combination of voxels in the mask around a corner, (16,) or (256,)."""
    tables = {2: create_table_neighbour_code_to_contour_length, 3: create_table_neighbour_code_to_surface_area}
    return np.asarray(tables[len(spacing)](spacing), np.float64)
