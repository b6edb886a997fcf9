"""What one training step sees."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TwoStreamBatch:
    """Labeled and unlabeled images of one step; labeled-ness is carried by the row, never by a target value.

    Attributes:
        image: (B, C, *S) float32; rows ``[0, n_labeled)`` are labeled, the rest is view 0 of unlabeled images.
        target: labeled rows only; a list over deep-supervision scales of (n_labeled, 1, *S_k) int16, or
            (n_labeled, R, *S_k) bool for regions; a single tensor without deep supervision; empty in pre-training.
        views: (V - 1, B - n_labeled, C, *S) float32, the further (strong) views of the unlabeled images.
        meta: meta-label -> (B,) int64 codes, -1 unknown.
        bbox: (B, 3, 2) int64, the crop in preprocessed voxels (axis 0 is the slice axis; in 2d one slice thick).
        case: B case ids.
        n_labeled: labeled rows.
    """

    image: Tensor
    target: list[Tensor] | Tensor
    views: Tensor
    meta: Mapping[str, Tensor]
    bbox: Tensor
    case: list[str]
    n_labeled: int

    @classmethod
    def from_dict(cls, batch: Mapping[str, Any]) -> "TwoStreamBatch":
        """Wrap the plain dict that a loader worker returns (nnU-Net's memory pinning needs a dict)."""
        return cls(**batch)

    def to(self, device: torch.device) -> "TwoStreamBatch":
        """Copy images, targets and meta-labels to ``device`` (boxes and case ids stay)."""
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
            bbox=self.bbox,
            case=self.case,
            n_labeled=self.n_labeled,
        )

    @property
    def meta_of_unlabeled(self) -> dict[str, Tensor]:
        """Meta-label -> (B - n_labeled,) int64 codes."""
        return {name: codes[self.n_labeled :] for name, codes in self.meta.items()}

    @property
    def labeled(self) -> Tensor:
        """(n_labeled, C, *S)."""
        return self.image[: self.n_labeled]

    @property
    def unlabeled(self) -> Tensor:
        """(B - n_labeled, C, *S), view 0."""
        return self.image[self.n_labeled :]
