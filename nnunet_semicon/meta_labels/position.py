"""Where a slice or patch lies in the original scan: crop box and resampling undone.

A position label must mean an anatomical position, not an index of a cropped and resampled array.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SliceAxis:
    """Axis 0 (after ``transpose_forward``) of one case, from the original scan to the preprocessed array.

    Attributes:
        original: slices of the original scan.
        crop_start: first slice that nnU-Net's crop kept.
        cropped: slices after cropping, before resampling.
        preprocessed: slices of the preprocessed array.
    """

    original: int
    crop_start: int
    cropped: int
    preprocessed: int

    @classmethod
    def from_properties(cls, properties: Mapping[str, Any], preprocessed: int) -> "SliceAxis":
        """Read the axis from the properties that nnU-Net's preprocessing stores with a case."""
        return cls(
            original=int(properties["shape_before_cropping"][0]),
            crop_start=int(properties["bbox_used_for_cropping"][0][0]),
            cropped=int(properties["shape_after_cropping_and_before_resampling"][0]),
            preprocessed=int(preprocessed),
        )

    def fraction(self, center: float | NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the position in the original scan, in [0, 1], of a point in preprocessed voxels.

        Args:
            center: voxel coordinate where voxel ``i`` covers ``[i, i + 1)``; any shape.
        """
        original = self.crop_start + np.asarray(center, dtype=float) * self.cropped / self.preprocessed
        return np.clip(original / self.original, 0.0, 1.0)

    def partition(self, center: float | NDArray[np.float64], partitions: int) -> NDArray[np.int64]:
        """Return the group of consecutive slices in ``[0, partitions)`` that a point lies in."""
        groups = np.floor(self.fraction(center) * partitions).astype(np.int64)
        return np.minimum(groups, partitions - 1)
