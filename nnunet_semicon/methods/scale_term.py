"""Contrast of the pixels of two networks at several scales: projectors, which pixels meet, and the sum over scales.

    L_cl = sum over scales of L_bcl                                                                    (MCSC poster)

(Liu et al., BMVC 2023.) The method (:mod:`nnunet_semicon.methods.mcsc`) says what class each pixel has; the loss is
that of :mod:`nnunet_semicon.losses.balanced_contrast`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.checkpoint import checkpoint

from nnunet_semicon.configuration.config import setting
from nnunet_semicon.configuration.rules import SET, Derived, Facts, scale_contrast
from nnunet_semicon.data.batch import resized_classes
from nnunet_semicon.errors import UserError
from nnunet_semicon.losses.balanced_contrast import balanced_contrast, shuffled_blocks
from nnunet_semicon.losses.contrastive import LOWEST_TEMPERATURE, supervised_contrast
from nnunet_semicon.losses.local_contrast import pixel_sets
from nnunet_semicon.losses.pairs import Pairs, anchors_first, positive_counts
from nnunet_semicon.methods.base import BuildContext
from nnunet_semicon.methods.negatives import NegativesWatch
from nnunet_semicon.networks.heads import PixelProjectors
from nnunet_semicon.networks.swin_unet import SwinUNet
from nnunet_semicon.networks.taps import channels_at, level_tap

LEVELS = {"1": 0, "1/4": 2, "1/8": 3}  # scale -> times the resolution was halved
VALUES_AT_ONCE = {False: 2**21, True: 2**25}  # of embeddings, on CPU (8 MB of float32) and on CUDA (128 MB)
DECAY = 5e-4  # of the projectors' weights (authors' code)


@dataclass(frozen=True)
class ScaleConfig:
    """Hyper-parameters of the contrast."""

    lambda_contrast: float = setting(
        0.001, "weight of the contrast in the loss of each network; 0: none", low=0, source="MCSC's code"
    )
    scales: dict[str, float] = setting(
        {"1": 1.0, "1/4": 0.0, "1/8": 1.0},
        "weight of the contrast at each scale of the image; 0 leaves it out",
        low=0,
        source="poster, Tab. A2: the best pair",
    )
    balanced: bool = setting(True, "every class counts as one in the denominator", source="poster")
    background_anchors: bool = setting(True, "draw pixels of the background together too", source="MCSC's code")
    pixels: str | None = setting(
        None,
        "pixels that meet at every scale: all, or those of one block of each map; null: derived",
        choices=("exact", "block"),
    )
    block_size: int = setting(
        19, "pixels along each side of a block; fewer where the blocks are derived", low=1, source="MCSC's code"
    )
    temperature: float = setting(0.1, "tau of the contrast", low=LOWEST_TEMPERATURE, source="MCSC's code")
    embedding_dim: int = setting(128, "dimension of a pixel's embedding", low=1, source="MCSC's code")
    projector_learning_rate: float = setting(
        5e-4, "learning rate of the projectors (AdamW)", low=0, source="MCSC's code"
    )


def scales_of(config: ScaleConfig) -> dict[str, float]:
    """Return scale -> weight of what is contrasted."""
    return {scale: weight for scale, weight in config.scales.items() if weight * config.lambda_contrast > 0}


def taps_of(config: ScaleConfig) -> tuple[str, ...]:
    """Return the places in both networks whose features are contrasted."""
    return tuple(level_tap(LEVELS[scale]) for scale in scales_of(config))


def derive(config: ScaleConfig, facts: Facts) -> dict[str, Derived]:
    """Return the side of the blocks whose pixels meet at each scale, 0: all pixels.

    Raises:
        UserError: no scale has a weight.
    """
    scales = scales_of(config)
    if not scales:
        if config.lambda_contrast == 0:
            return {}
        raise UserError("no scale has a weight above 0: set one, e.g. scales.1=1, or lambda_contrast=0")
    side = config.block_size
    if config.pixels is not None:
        return {"blocks": Derived(dict.fromkeys(scales, side if config.pixels == "block" else 0), SET)}
    rows, dimension = facts.rows.student_rows, config.embedding_dim
    rules = scale_contrast(rows, {scale: LEVELS[scale] for scale in scales}, dimension, facts.network, side)
    reasons = "; ".join(f"{scale}: {rules[scale].reason}" for scale in scales)
    return {"blocks": Derived({scale: rules[scale].value for scale in scales}, reasons)}


class ScaleTerm(nn.Module):
    """Projectors, and the loss over the pixels of both networks, of all images of this rank.

    Args:
        config: the hyper-parameters; some scale has a weight.
        build: see :class:`~nnunet_semicon.methods.base.BuildContext`; ``derived`` holds the blocks.
        second: the second network.
    """

    def __init__(self, config: ScaleConfig, build: BuildContext, second: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.weights = scales_of(config)
        self.blocks: Mapping[str, int] = build.derived["blocks"].value
        self.n_classes = 2**build.n_heads if build.has_regions else build.n_heads
        self.projectors = nn.ModuleList(
            PixelProjectors(
                [build.tap_channels[tap], channels_at(second, tap)],
                config.embedding_dim,
                [False, isinstance(second, SwinUNet) and LEVELS[scale] > 0],  # its last map is normalized already
            )
            for scale, tap in zip(self.weights, taps_of(config), strict=True)
        )
        remedy = "look whether the labeled scans of the fold have foreground, or leave this scale out"
        self.negatives = NegativesWatch({f"scale {scale}": remedy for scale in self.weights})

    def optimizer(self) -> Optimizer:
        """Return the projectors' own AdamW."""
        rate = self.config.projector_learning_rate
        return AdamW(self.projectors.parameters(), lr=rate, weight_decay=DECAY)

    def forward(self, features: Sequence[Mapping[str, Tensor]], classes: Sequence[Tensor]) -> Tensor:
        """Return the weighted sum over scales, ().

        Args:
            features: of the student and of the second network, tap -> (B, C, *s).
            classes: (B, *S) int64 for the pixels of each network, at full resolution, 0 = background, -1 = to be
                ignored; brought to a map's resolution by nearest neighbor.
        """
        total = classes[0].new_zeros((), dtype=torch.float32)
        for index, (scale, weight) in enumerate(self.weights.items()):
            maps = [own[level_tap(LEVELS[scale])] for own in features]
            size = maps[0].shape[2:]
            if maps[1].shape[2:] != size:  # a Transformer has no map at some levels
                maps[1] = F.interpolate(maps[1], size=tuple(size), mode="bilinear" if len(size) == 2 else "trilinear")
            labels = [resized_classes(own, size) for own in classes]
            drawn = [_part_of_sets(own, y, self.blocks[scale]) for own, y in zip(maps, labels, strict=True)]
            pixels, of_pixels = zip(*drawn, strict=True)
            total = total + weight * self._loss(index, pixels, torch.cat(of_pixels, dim=1))
        return total

    def _loss(self, index: int, pixels: Sequence[Tensor], labels: Tensor) -> Tensor:
        """The loss of one scale; (K, n, C) of each network, (K, N) of both.

        Sets do not meet: where there are many, a few at a time are embedded and contrasted, and again in the backward
        pass, so that the embeddings of all pixels are never in memory at once.
        """
        is_anchor = labels >= (0 if self.config.background_anchors else 1)
        is_anchor &= (labels > 0).any(dim=1, keepdim=True)  # sets of background alone are left out, as in the code
        pairs = Pairs(labels, is_anchor)
        if self.training:
            self.negatives.count(index, pairs)
        at_once = max(1, VALUES_AT_ONCE[labels.is_cuda] // (labels.shape[1] * self.config.embedding_dim))
        if at_once >= len(labels):
            return self._contrast(index, pixels, labels, is_anchor)
        counts = (positive_counts(pairs) > 0).any(dim=1)  # sets that have something to contrast
        total = labels.new_zeros((), dtype=torch.float32)
        split = (own.split(at_once) for own in (*pixels, labels, is_anchor, counts))
        for *of_networks, own_labels, own_anchors, own_counts in zip(*split, strict=True):
            own = index, of_networks, own_labels, own_anchors
            mean = checkpoint(self._contrast, *own, use_reentrant=False, preserve_rng_state=False)
            total = total + mean * own_counts.sum()
        return total / counts.sum().clamp_min(1)

    def _contrast(self, index: int, pixels: Sequence[Tensor], labels: Tensor, is_anchor: Tensor) -> Tensor:
        """Mean loss of the given sets of one scale."""
        vectors, pairs = anchors_first(torch.cat(self.projectors[index](pixels), dim=1), labels, is_anchor)
        if self.config.balanced:
            return balanced_contrast(vectors, pairs, self.n_classes, self.config.temperature)
        return supervised_contrast(vectors, pairs, self.config.temperature)


def _part_of_sets(maps: Tensor, labels: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """(B, C, *s) and (B, *s) of one network to (K, n, C) and (K, n): its part of each of the K sets."""
    return shuffled_blocks(maps, labels, block) if block else pixel_sets(maps, labels, "exact", 0)
