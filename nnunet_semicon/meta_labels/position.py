"""Where a slice or patch lies in the original scan: crop box, resampling and storage order undone.

A position label must mean an anatomical position, not an index of a cropped and resampled array. nnU-Net's default
reader ignores the orientation in the header, so the same anatomy may be stored head to foot in one file and foot to
head in the next; here positions of all files run the same way.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Positions run along this direction (to the patient's left, back, head: -1 means right). All components are far from
# zero, so that axial, coronal and sagittal stacks have a clear sign and short-axis views of the heart, which lie
# along (left, front, foot) or the opposite, have the clearest. The sign of the largest component would not do: in
# oblique stacks it changes between neighboring directions.
REFERENCE_LPS = (-1.0, 1.0, 1.0)


@dataclass(frozen=True)
class SliceAxis:
    """Axis 0 (after ``transpose_forward``) of one case, from the original scan to the preprocessed array.

    Attributes:
        original: slices of the original scan.
        crop_start: first slice that nnU-Net's crop kept.
        cropped: slices after cropping, before resampling.
        preprocessed: slices of the preprocessed array.
        backward: the file stores the slices against the direction in which positions are counted.
    """

    original: int
    crop_start: int
    cropped: int
    preprocessed: int
    backward: bool = False

    @classmethod
    def from_properties(cls, properties: Mapping[str, Any], preprocessed: int, array_axis: int = 0) -> "SliceAxis":
        """Read the axis from the properties that nnU-Net's preprocessing stores with a case.

        Args:
            properties: of the case; shapes and box are stored after ``transpose_forward``.
            preprocessed: length of axis 0 of the preprocessed array.
            array_axis: the axis of the array as read from the file that became axis 0, ``transpose_forward[0]``.
                Only the orientation depends on it; the properties do not tell it.
        """
        return cls(
            original=int(properties["shape_before_cropping"][0]),
            crop_start=int(properties["bbox_used_for_cropping"][0][0]),
            cropped=int(properties["shape_after_cropping_and_before_resampling"][0]),
            preprocessed=int(preprocessed),
            backward=is_backward(properties, array_axis),
        )

    def fraction(self, center: float | NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the position in the original scan, in [0, 1], of a point in preprocessed voxels.

        Args:
            center: voxel coordinate where voxel ``i`` covers ``[i, i + 1)``; any shape.
        """
        original = self.crop_start + np.asarray(center, dtype=float) * self.cropped / self.preprocessed
        if self.backward:
            original = self.original - original
        return np.clip(original / self.original, 0.0, 1.0)

    def partition(self, center: float | NDArray[np.float64], partitions: int) -> NDArray[np.int64]:
        """Return the group of consecutive slices in ``[0, partitions)`` that a point lies in."""
        # the tiny number: rounding must not move a center that lies on a border, or copies of a scan would differ
        groups = np.floor(self.fraction(center) * partitions + 1e-9).astype(np.int64)
        return np.minimum(groups, partitions - 1)


def is_backward(properties: Mapping[str, Any], array_axis: int) -> bool:
    """Return whether the file stores its slices against ``REFERENCE_LPS``; False where the header does not tell."""
    direction = axis_direction(properties, array_axis)
    return direction is not None and bool(direction @ np.array(REFERENCE_LPS) < 0)


def axis_direction(properties: Mapping[str, Any], array_axis: int) -> NDArray[np.float64] | None:
    """Return the direction in the patient, (3,) LPS, in which an axis runs; None where the header does not tell.

    Args:
        properties: what nnU-Net's readers return with an image: ``sitk_stuff`` (direction cosines, LPS) or
            ``nibabel_stuff`` (affine, RAS).
        array_axis: axis of the array as read, 0 to 2; axis 0 is the last one of the file.
    """
    if "sitk_stuff" in properties:
        cosines = np.asarray(properties["sitk_stuff"]["direction"], dtype=float)
        size = round(cosines.size**0.5)  # 2, 3 or, with channels in one file, 4
        to_lps = cosines.reshape(size, size)[:3, :3]
    elif "nibabel_stuff" in properties:
        affines = properties["nibabel_stuff"]
        affine = np.asarray(affines.get("reoriented_affine", affines["original_affine"]), dtype=float)
        to_lps = affine[:3, :3] * np.array([[-1.0], [-1.0], [1.0]])
    else:
        return None
    if to_lps.shape != (3, 3):  # a single 2D image
        return None
    return np.asarray(to_lps[:, 2 - array_axis])
