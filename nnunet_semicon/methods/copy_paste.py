"""Copy-paste: a box of one image, with its labels, replaces the same place of another (CutMix, Yun et al. 2019).

    x = M o x_b + (1 - M) o x_a,   y and the weight of each pixel alike                    (BCP, Bai et al. 2023, eq. 1)

M: a box that covers ``box_min`` to ``box_max`` of the image, or everything but that box.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_semicon.configuration.config import Settings, setting
from nnunet_semicon.data.batch import TwoStreamBatch
from nnunet_semicon.errors import UserError
from nnunet_semicon.losses.mixing import chosen_rows, mix, random_boxes


class PasteConfig(Settings):
    """Hyper-parameters of the boxes."""

    paste_probability: float = setting(
        0.7, "part of the images that get a box of another image", low=0, high=1, source="ours; BCP 1"
    )
    box_min: float = setting(0.25, "smallest part of an image that a box covers", low=0, high=1, source="ours")
    box_max: float = setting(0.6, "largest part of an image that a box covers", low=0, high=1, source="ours")
    paste_inverted: float = setting(
        0.5,
        "part of the boxes outside of which, instead of inside, the other image lies",
        low=0,
        high=1,
        source="ours",
    )


@dataclass(frozen=True)
class Targets:
    """Images and the targets that a network is to predict there.

    Attributes:
        images: (B, C, *S) float32.
        target: (B, 1, *S) labels, or (B, R, *S) bool for regions, at full resolution.
        weight: (B, *S) float32 in [0, 1].
    """

    images: Tensor
    target: Tensor
    weight: Tensor

    def __getitem__(self, rows: Tensor) -> "Targets":
        """Return some of the rows, in the order of ``rows``."""
        return Targets(self.images[rows], self.target[rows], self.weight[rows])


def refuse_impossible_boxes(config: PasteConfig) -> None:
    """Raise a UserError where the smallest box is larger than the largest."""
    if config.box_min > config.box_max:
        raise UserError(
            f"'box_min' is {config.box_min:g} and 'box_max' is {config.box_max:g}, expected a smaller 'box_min': the "
            "parts of an image that a box covers lie between them"
        )


def boxes(config: PasteConfig, count: int, size: tuple[int, ...], probability: float) -> Tensor:
    """Return one random mask for each image, (count, *size) bool; no pixel is True in the images not chosen."""
    masks = random_boxes(count, size, (config.box_min, config.box_max), inverted=config.paste_inverted)
    return masks & chosen_rows(count, probability).view(-1, *[1] * len(size))


def paste(base: Targets, other: Targets, masks: Tensor) -> Targets:
    """Return ``base`` with ``other`` where ``masks`` is True.

    Args:
        base: (B, ...).
        other: (B, ...).
        masks: (B, *S) bool.
    """
    masks = masks.to(base.images.device)
    return Targets(
        mix(base.images, other.images, masks),
        mix(base.target, other.target, masks),
        mix(base.weight, other.weight, masks),
    )


def partners(count: int, of: int) -> Tensor:
    """Return for each of ``count`` images the image to take content from, (count,) int64 in [0, of).

    Every image serves equally often, as far as the numbers allow.
    """
    rounds = [torch.randperm(of) for _ in range(-(-count // of))]
    return torch.cat(rounds)[:count]


def joined(first: Targets, second: Targets) -> Targets:
    """Return the rows of both, one after the other."""
    return Targets(
        torch.cat([first.images, second.images]),
        torch.cat([first.target, second.target]),
        torch.cat([first.weight, second.weight]),
    )


def labeled_targets(batch: TwoStreamBatch) -> Targets:
    """Return the labeled rows of a batch at full resolution; every pixel counts."""
    target = batch.target[0] if isinstance(batch.target, list) else batch.target
    images = batch.labeled
    return Targets(images, target, images.new_ones((len(images), *images.shape[2:])))


def as_target(predicted: Tensor, like: Tensor) -> Tensor:
    """Return a prediction as the batch's targets are stored; no pixel of it is to be ignored.

    Args:
        predicted: (B, 1, *S) int64 classes, or (B, R, *S) bool regions.
        like: (n, 1, *S) int16, or (n, R, *S) or (n, R + 1, *S) bool: the last channel marks pixels to be ignored.
    """
    missing = like.shape[1] - predicted.shape[1]
    if missing > 0:
        nowhere = predicted.new_zeros((len(predicted), missing, *predicted.shape[2:]))
        predicted = torch.cat([predicted, nowhere], dim=1)
    return predicted.to(like.dtype)
