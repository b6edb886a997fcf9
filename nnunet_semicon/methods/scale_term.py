"""Contrast of the pixels of two networks at several scales: projectors, which pixels meet, and the sum over scales.

    L_cl = sum over scales of L_bcl                                                                    (MCSC poster)

(Liu et al., BMVC 2023.) The method (:mod:`nnunet_semicon.methods.mcsc`) says what class each pixel has; the loss is
that of :mod:`nnunet_semicon.losses.balanced_contrast`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.checkpoint import checkpoint

from nnunet_semicon.configuration.config import Settings, Weights, open_setting, setting
from nnunet_semicon.configuration.cost import NetworkCost
from nnunet_semicon.configuration.derived import SET, Derived, Filled
from nnunet_semicon.configuration.facts import Facts
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


Blocks = dict[str, Annotated[int, Field(ge=0)]]  # scale -> side


class ScaleConfig(Settings):
    """Hyper-parameters of the contrast."""

    lambda_contrast: float = setting(
        0.001, "weight of the contrast in the loss of each network; 0: none", low=0, source="MCSC's code"
    )
    scales: Weights = setting(
        {"1": 1.0, "1/4": 0.0, "1/8": 1.0},
        "weight of the contrast at each scale of the image; 0 leaves it out",
        source="poster, Tab. A2: the best pair",
    )
    balanced: bool = setting(True, "every class counts as one in the denominator", source="poster")
    background_anchors: bool = setting(True, "draw pixels of the background together too", source="MCSC's code")
    pixels: Literal["exact", "block"] | None = setting(
        None, "pixels that meet at every scale: all, or those of one block of each map; null: derived"
    )
    block_size: int = setting(
        19, "pixels along each side of a block; fewer where the blocks are derived", low=1, source="MCSC's code"
    )
    blocks: Blocks = open_setting(
        "side of the blocks at each scale in pixels, 0: all pixels meet; null: from pixels and block_size"
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


C = TypeVar("C", bound=ScaleConfig)


def derive(config: C, facts: Facts) -> Filled[C]:
    """Fill in the side of the blocks whose pixels meet at each scale, 0: all pixels.

    Raises:
        UserError: no scale has a weight, or one that has a weight has no block.
    """
    scales = scales_of(config)
    if not scales:
        if config.lambda_contrast == 0:
            return Filled(config).fill(blocks=Derived({}, "no contrast"))
        raise UserError("no scale has a weight above 0: set one, e.g. scales.1=1, or lambda_contrast=0")
    if config.blocks is not None:
        if config.blocks.keys() != scales.keys():
            expected = " ".join(f"blocks.{scale}=..." for scale in scales)
            raise UserError(f"blocks are those of the scales {', '.join(config.blocks)}, expected {expected}, or none")
        return Filled(config)
    side = config.block_size
    if config.pixels is not None:
        return Filled(config).fill(blocks=Derived(dict.fromkeys(scales, side if config.pixels == "block" else 0), SET))
    rows, dimension = facts.rows.student_rows, config.embedding_dim
    rules = scale_contrast(rows, {scale: LEVELS[scale] for scale in scales}, dimension, facts.network, side)
    reasons = "; ".join(f"{scale}: {rules[scale].reason}" for scale in scales)
    return Filled(config).fill(blocks=Derived({scale: rules[scale].value for scale in scales}, reasons))


def scale_contrast(
    rows: int, levels: Mapping[str, int], dimension: int, network: NetworkCost, published: int
) -> dict[str, Derived]:
    """Side of the blocks whose pixels are contrasted in the maps of two networks at each scale; 0: all, exactly.

    Blocks at one place of each of M maps of P pixels cost 6 M^2 P side^d D operations, all pixels 6 (M P)^2 D. All
    scales together may cost what both networks do; coarse scales come first. Where all pixels cost more than is left,
    the largest block up to the published one that fits.

    Args:
        rows: of each network.
        levels: scale -> level of the decoder, 0 is full resolution.
        dimension: D of an embedding.
        network: cost and sizes of one network, one row.
        published: side of the paper's block in pixels.
    """
    if network.flops == 0:
        reason = f"blocks of {published}, as published: the plans do not say what the network costs"
        return dict.fromkeys(levels, Derived(published, reason))
    maps = 2 * rows
    budget = left = maps * network.flops
    derived = {}
    for scale, level in sorted(levels.items(), key=lambda item: -item[1]):
        shape = network.shapes[min(level, len(network.shapes) - 1)]
        of_a_block = 6 * maps**2 * math.prod(shape) * dimension  # times its number of pixels
        exact = of_a_block * math.prod(shape)
        fits = (side for side in range(published, 1, -1) if of_a_block * side ** len(shape) <= left)
        side = 0 if exact <= left else next(fits, 1)
        left -= of_a_block * side ** len(shape) if side else exact
        what = f"blocks of {side}" if side else "all pixels"
        words = f"{'more' if side else 'no more'} than is left of the networks' own {budget:.2g} operations"
        reason = f"{what}; 6 N^2 D for N = {maps * math.prod(shape)} pixels, D = {dimension}: {words}"
        derived[scale] = Derived(side, reason)
    return derived


class ScaleTerm(nn.Module):
    """Projectors, and the loss over the pixels of both networks, of all images of this rank.

    Args:
        config: the hyper-parameters, filled; some scale has a weight.
        build: see :class:`~nnunet_semicon.methods.base.BuildContext`.
        second: the second network.
    """

    def __init__(self, config: ScaleConfig, build: BuildContext, second: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.weights = scales_of(config)
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
            drawn = [_part_of_sets(own, y, self.config.blocks[scale]) for own, y in zip(maps, labels, strict=True)]
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
