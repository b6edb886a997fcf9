"""Normalized surface Dice (NSD): the part of both surfaces that lies within a tolerance of the other one.

Nikolov et al., Clinically Applicable Segmentation of Head and Neck Anatomy (2021). Counting boundary voxels would
weigh a slanted surface by its number of steps, so the surface is a mesh here: where the eight voxels around a corner of
the voxel grid are not all alike, that corner carries a surface element ("surfel") with the area that marching cubes
(Lorensen & Cline 1987) gives to the 2 x 2 x 2 neighborhood. The values equal those of the package
``surface-distance``.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from nnunet_semicon.evaluation.surface import Mask, distances

Corner = tuple[int, ...]
Edge = tuple[Corner, Corner]
Triangle = tuple[Edge, Edge, Edge]


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
    near = (between.to_reference <= tolerance, between.to_prediction <= tolerance)
    return float(sum(a[n].sum() for a, n in zip(areas, near, strict=True)) / sum(a.sum() for a in areas))


def surfels(mask: Mask, spacing: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return positions, (N, d), and areas, (N,), of the surface elements, in mm and mm^2 (in 2d: mm of contour)."""
    padded = np.pad(mask, 1)
    codes = np.zeros([size - 1 for size in padded.shape], np.uint8)
    for bit, corner in enumerate(_corners(mask.ndim)):
        window = tuple(slice(c, size - 1 + c) for c, size in zip(corner, padded.shape, strict=True))
        codes |= padded[window].astype(np.uint8) << bit
    everywhere = 2 ** (2**mask.ndim) - 1
    positions = np.argwhere((codes != 0) & (codes != everywhere))
    areas = area_of_code(tuple(map(float, spacing)))
    return positions.astype(np.float64) * np.asarray(spacing), areas[codes[tuple(positions.T)]]


@cache
def area_of_code(spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the area of every neighborhood: bit i of its code says whether corner i (in C order) is in the mask."""
    size = np.asarray(spacing)
    count = 2 ** (2 ** len(spacing))
    if len(spacing) == 2:
        return np.array([sum(_length(segment, size) for segment in _segments(code)) for code in range(count)])
    return np.array([sum(_area(triangle, size) for triangle in _triangles(code)) for code in range(count)])


def _corners(ndim: int) -> list[Corner]:
    return list(product((0, 1), repeat=ndim))


def _middle(edge: Edge, size: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.add(*edge) / 2 * size


def _length(segment: Sequence[Edge], size: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(_middle(segment[0], size) - _middle(segment[1], size)))


def _area(triangle: Triangle, size: NDArray[np.float64]) -> float:
    a, b, c = (_middle(edge, size) for edge in triangle)
    return float(np.linalg.norm(np.cross(b - a, c - a)) / 2)


def _segments(code: int) -> list[tuple[Edge, Edge]]:
    """Return the contour in a 2 x 2 neighborhood; two corners that touch diagonally are not connected."""
    corners = _corners(2)
    return _face_segments(corners, {c for bit, c in enumerate(corners) if code >> bit & 1}, connect=False)


def _triangles(code: int) -> list[Triangle]:
    """Return the mesh in a 2 x 2 x 2 neighborhood.

    Two choices of marching cubes are open and taken as in ``surface-distance``: on a face whose corners are alike only
    diagonally, the rarer kind of the eight corners is separated; and a polygon that is not flat is cut into those
    triangles that have the largest area in a unit cube.
    """
    corners = _corners(3)
    inside = {corner for bit, corner in enumerate(corners) if code >> bit & 1}
    neighbors: dict[Edge, list[Edge]] = defaultdict(list)
    for axis, side in product(range(3), (0, 1)):
        face = [corner for corner in corners if corner[axis] == side]
        for first, second in _face_segments(face, inside, connect=len(inside) > 4):
            neighbors[first].append(second)
            neighbors[second].append(first)
    unit = np.ones(3)
    mesh: list[Triangle] = []
    while neighbors:
        polygon = _pop_polygon(neighbors)
        mesh += max(_triangulations(polygon), key=lambda cut: round(sum(_area(t, unit) for t in cut), 9))
    return mesh


def _face_segments(face: Sequence[Corner], inside: set[Corner], connect: bool) -> list[tuple[Edge, Edge]]:
    """Return the lines that part the corners of a square, each from the middle of one of its edges to another."""
    crossed = [
        (a, b)
        for a in face
        for b in face
        if a < b and np.abs(np.subtract(a, b)).sum() == 1 and (a in inside) != (b in inside)
    ]
    if len(crossed) == 2:
        return [(crossed[0], crossed[1])]
    cut_off = [corner for corner in face if (corner in inside) != connect] if crossed else []
    return [tuple(edge for edge in crossed if corner in edge) for corner in cut_off]  # type: ignore[misc]


def _pop_polygon(neighbors: dict[Edge, list[Edge]]) -> list[Edge]:
    """Take one closed polygon out of the links between edges, and return its corners in order."""
    polygon = [next(iter(neighbors))]
    while True:
        following = [edge for edge in neighbors[polygon[-1]] if edge not in polygon]
        if not following:
            break
        polygon.append(following[0])
    for edge in polygon:
        del neighbors[edge]
    return polygon


def _triangulations(polygon: Sequence[Edge]) -> list[list[Triangle]]:
    """Return all ways to cut a polygon into triangles; the side from its first to its last corner is in one of them."""
    if len(polygon) < 3:
        return [[]]
    return [
        [*left, (polygon[0], polygon[k], polygon[-1]), *right]
        for k in range(1, len(polygon) - 1)
        for left in _triangulations(polygon[: k + 1])
        for right in _triangulations(polygon[k:])
    ]
