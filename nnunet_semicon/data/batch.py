"""What one training step sees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def pixel_classes(target: list[Tensor] | Tensor, has_regions: bool, ignore_label: int | None) -> Tensor:
    """Return one class per pixel at full resolution.

    Args:
        target: of a batch: (B, 1, *S) labels, or (B, R, *S) bool for regions, whose last channel marks pixels to be
            ignored if there is an ignore label; over deep-supervision scales, the finest first.
        has_regions: whether channels are regions: each combination of them is a class, bit r for region r.
        ignore_label: value that marks pixels to be ignored, or None.

    Returns:
        (B, *S) int64, 0 = background, -1 = to be ignored.
    """
    finest = target[0] if isinstance(target, list) else target
    if not has_regions:
        classes = finest[:, 0].long()
        return classes if ignore_label is None else classes.masked_fill(classes == ignore_label, -1)
    regions = finest if ignore_label is None else finest[:, :-1]
    classes = torch.zeros_like(finest[:, 0], dtype=torch.int64)
    for bit in range(regions.shape[1]):
        classes += regions[:, bit].long() << bit
    return classes if ignore_label is None else classes.masked_fill(finest[:, -1] > 0, -1)


def resized_classes(classes: Tensor, size: Sequence[int]) -> Tensor:
    """Return classes at another resolution, by nearest neighbor; (B, *S) -> (B, *size)."""
    if classes.shape[1:] == tuple(size):
        return classes
    return F.interpolate(classes[:, None].float(), size=tuple(size), mode="nearest-exact")[:, 0].long()


@dataclass(frozen=True)
class TwoStreamBatch:
    """Labeled and unlabeled images of one step; labeled-ness is carried by the row, never by a target value.

    Attributes:
        image: (B, C, *S) float32; rows ``[0, n_labeled)`` are labeled, the rest is view 0 of unlabeled images.
        target: labeled rows only; a list over deep-supervision scales of (n_labeled, 1, *S_k) int16, or
            (n_labeled, R, *S_k) bool for regions; a single tensor without deep supervision; empty in pre-training.
        views: (V - 1, B - n_labeled, C, *S) float32, the unlabeled images in their further geometries.
        meta: meta-label -> (B - n_labeled,) int64 codes of the unlabeled rows, -1 unknown.
        case: B case ids.
        n_labeled: labeled rows.
    """

    image: Tensor
    target: list[Tensor] | Tensor
    views: Tensor
    meta: Mapping[str, Tensor]
    case: list[str]
    n_labeled: int

    @classmethod
    def from_dict(cls, batch: Mapping[str, Any]) -> "TwoStreamBatch":
        """Wrap the plain dict that a loader worker returns (nnU-Net's memory pinning needs a dict)."""
        return cls(**batch)

    def to(self, device: torch.device) -> "TwoStreamBatch":
        """Copy images, targets and meta-labels to ``device`` (case ids stay)."""
        target = (
            [t.to(device, non_blocking=True) for t in self.target]
            if isinstance(self.target, list)
            else self.target.to(device, non_blocking=True)
        )
        return TwoStreamBatch(
            image=self.image.to(device, non_blocking=True),
            target=target,
            views=self.views.to(device, non_blocking=True),
            meta={name: codes.to(device, non_blocking=True) for name, codes in self.meta.items()},
            case=self.case,
            n_labeled=self.n_labeled,
        )

    @property
    def labeled(self) -> Tensor:
        """(n_labeled, C, *S)."""
        return self.image[: self.n_labeled]

    @property
    def unlabeled(self) -> Tensor:
        """(B - n_labeled, C, *S), view 0."""
        return self.image[self.n_labeled :]
