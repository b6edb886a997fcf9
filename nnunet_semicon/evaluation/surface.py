"""Distances between the surfaces of two masks: HD95, HD, ASD, ASSD.

A surface is the set of boundary voxels: those of the mask with a face neighbor outside of it; outside the image counts
as outside the mask. Distances are between voxel centers. These are the definitions of ``medpy.metric.binary``, the
package that most papers on semi-supervised segmentation measure with; the values are equal.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

Mask = NDArray[np.bool_]
Points = NDArray[np.float64]


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances between two surfaces, in the unit of the spacing that they were computed with.

    Attributes:
        to_reference: for every surface element of the prediction the distance to the nearest one of the reference,
            float64, (P,), not empty.
        to_prediction: the other way round, (R,).
    """

    to_reference: NDArray[np.float64]
    to_prediction: NDArray[np.float64]

    @property
    def hd(self) -> float:
        """Hausdorff distance: the largest of all distances, in both directions."""
        return float(max(self.to_reference.max(), self.to_prediction.max()))

    @property
    def hd95(self) -> float:
        """95th percentile of the distances of both directions, pooled."""
        return float(np.percentile(self._pooled, 95))

    @property
    def asd(self) -> float:
        """Average distance from the prediction to the reference: one direction only, a missing part costs nothing."""
        return float(self.to_reference.mean())

    @property
    def assd(self) -> float:
        """Average distance of both directions, pooled."""
        return float(self._pooled.mean())

    @property
    def _pooled(self) -> NDArray[np.float64]:
        return np.concatenate([self.to_reference, self.to_prediction])


def boundary(mask: Mask) -> NDArray[np.int64]:
    """Return the indices of the boundary voxels of a mask.

    Args:
        mask: bool, 2d or 3d.

    Returns:
        int64, (N, mask.ndim), in C order.
    """
    interior = mask.copy()
    for axis in range(mask.ndim):
        forward, backward = _shifted(mask, axis)
        inside, inside_too = _shifted(interior, axis)
        inside &= backward
        inside_too &= forward
        ends = [slice(None)] * mask.ndim
        for end in (0, -1):
            ends[axis] = end  # type: ignore[call-overload]
            interior[tuple(ends)] = False
    return np.argwhere(mask & ~interior)


def _shifted(array: Mask, axis: int) -> tuple[Mask, Mask]:
    """Return views without the last, and without the first plane of an axis."""
    before = tuple(slice(None, -1) if i == axis else slice(None) for i in range(array.ndim))
    after = tuple(slice(1, None) if i == axis else slice(None) for i in range(array.ndim))
    return array[before], array[after]


def distances(prediction: Points, reference: Points) -> SurfaceDistances:
    """Return the distances between two surfaces.

    The nearest points are looked up in a k-d tree: exact, and time and memory depend on the surfaces, not on the
    volume between them.

    Args:
        prediction: its surface elements, float64, (P, d), scaled with the spacing; not empty.
        reference: the same, (R, d).
    """
    return SurfaceDistances(
        KDTree(reference).query(prediction)[0],
        KDTree(prediction).query(reference)[0],
    )


def joint_box(first: Mask, second: Mask) -> tuple[slice, ...]:
    """Return the smallest box with both masks in it; nothing outside of it matters for their surfaces.

    Args:
        first: bool, any shape, not empty.
        second: the same shape.
    """
    box = []
    for axis in range(first.ndim):
        others = tuple(i for i in range(first.ndim) if i != axis)
        occupied = np.flatnonzero(first.any(axis=others) | second.any(axis=others))
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return tuple(box)
