"""Supervised local contrast on the maps of the decoder: heads, sampling of pixels, and the sum over levels.

The joint method (:mod:`nnunet_semicon.methods.supervised_local`) and the pre-training
(:mod:`nnunet_semicon.methods.supervised_local_pretrain`) both own one :class:`LocalTerm`; the loss is that of
:mod:`nnunet_semicon.losses.local_contrast` (Hu et al., MICCAI 2021).
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, TypeVar

from torch import Tensor, nn

from nnunet_semicon.configuration.config import Settings, Weights, open_setting, setting
from nnunet_semicon.configuration.cost import NetworkCost
from nnunet_semicon.configuration.derived import Derived, Filled
from nnunet_semicon.configuration.facts import Facts
from nnunet_semicon.data.batch import resized_classes
from nnunet_semicon.errors import UserError
from nnunet_semicon.losses.contrastive import LOWEST_TEMPERATURE
from nnunet_semicon.losses.local_contrast import local_contrast, pixel_sets
from nnunet_semicon.losses.pairs import Pairs
from nnunet_semicon.methods.base import BuildContext, Needs
from nnunet_semicon.methods.negatives import NegativesWatch
from nnunet_semicon.networks.precision import in_float32
from nnunet_semicon.networks.taps import decoder_tap

HIDDEN = 256  # channels between the two layers of a head (Hu's code)
PUBLISHED_STRIDE = 4  # section 2.2


LOCAL_PAPER = {
    "form": Derived("hu_eq2", "eq. 2 as printed"),
    "sampling": Derived("stride", "section 2.2"),
    "stride": Derived(PUBLISHED_STRIDE, "section 3"),
    "block_size": Derived(16, "section 2.2"),
    "temperature": Derived(0.1, "Hu's script; not printed"),
    "head": Derived("two_layer", "section 2.2"),
    "embedding_dim": Derived(128, "Hu's code"),
    "level_weight": Derived({"0": 1.0, "1": 0.0, "2": 0.0, "3": 0.0}, "section 2.2: full resolution"),
    "background_anchors": Derived(False, "section 2.2"),
}


class LocalConfig(Settings):
    """Hyper-parameters of the local contrast."""

    form: Literal["supcon", "hu_eq2"] = setting(
        "supcon", "the loss: that of the code, or eq. 2 as printed", source="Hu's code"
    )
    sampling: Literal["exact", "stride", "block"] = open_setting(
        "pixels that meet: all, every stride-th along each axis, or those of one block; null: derived",
        source="section 2.2",
    )
    stride: int = open_setting("pixels from one sample to the next; null: derived", low=1)
    block_size: int = setting(16, "pixels along each side of a block", low=1, source="section 2.2")
    temperature: float = setting(0.1, "tau of the contrast", low=LOWEST_TEMPERATURE, source="Hu's code")
    head: Literal["two_layer", "one_layer"] = setting(
        "two_layer", "pointwise convolutions before the contrast", source="Hu's code"
    )
    embedding_dim: int = setting(128, "dimension of a pixel's embedding", low=1, source="Hu's code")
    level_weight: Weights = setting(
        {"0": 1.0, "1": 0.0, "2": 0.0, "3": 0.0},
        "weight of the contrast at each level of the decoder; 0: full resolution, 1: half of it; 0 leaves it out",
        source="full resolution in the paper",
    )
    background_anchors: bool = setting(
        False, "draw pixels of the background together too", source="section 2.2: they are only pushed away"
    )


def levels_of(config: LocalConfig) -> list[int]:
    """Return the levels that have a weight."""
    return [int(level) for level, weight in config.level_weight.items() if weight > 0]


def with_taps(needs: Needs, config: LocalConfig) -> Needs:
    """Return what a method with this term asks of the trainer: its maps follow from the hyper-parameters."""
    return replace(needs, taps=tuple(decoder_tap(level) for level in levels_of(config)))


C = TypeVar("C", bound=LocalConfig)


def derive(config: C, facts: Facts, images: int) -> Filled[C]:
    """Fill in the pixels that meet.

    Args:
        config: the hyper-parameters.
        facts: what the plans say.
        images: rows of the student whose pixels are contrasted.

    Raises:
        UserError: no level has a weight.
    """
    levels = levels_of(config)
    if not levels:
        raise UserError(
            "no level of the decoder has a weight above 0: set one entry of level_weight, e.g. level_weight.0=1"
        )
    return Filled(config).fill(**pixel_contrast(images, min(levels), config.embedding_dim, facts.network))


def pixel_contrast(images: int, level: int, dimension: int, network: NetworkCost) -> Mapping[str, Derived]:
    """Which pixels are contrasted with one another: all of them, or every ``stride``-th along each axis.

    Exact contrast of N pixels costs 6 N^2 D operations, forward and backward. It is taken where that is at most what
    the network itself costs; above, the published sampling with the largest set that fits.

    Args:
        images: rows of the student whose pixels meet.
        level: of the decoder, 0 is full resolution.
        dimension: D of an embedding.
        network: cost and sizes, one row.
    """
    shape = network.shapes[min(level, len(network.shapes) - 1)]

    def pixels(step: int) -> int:
        return images * math.prod(-(-size // step) for size in shape)

    def fits(step: int) -> bool:
        return 6 * pixels(step) ** 2 * dimension <= images * network.flops

    fitting = next((step for step in range(1, max(shape)) if fits(step)), max(shape))
    if network.flops == 0:
        fitting = PUBLISHED_STRIDE
    cost = f"6 N^2 D for N = {pixels(1)} pixels, D = {dimension}"
    if network.flops == 0:
        reason = f"stride {PUBLISHED_STRIDE}, as published: the plans do not say what the network costs"
    elif fitting == 1:
        reason = f"{cost}: at most the network's own {images * network.flops:.2g} operations"
    else:
        reason = f"{cost}: more than the network's own {images * network.flops:.2g} operations"
    return {
        "sampling": Derived("exact" if fitting == 1 else "stride", reason),
        "stride": Derived(fitting, f"the smallest that leaves a set that fits: N = {pixels(fitting)}"),
    }


class LocalTerm(nn.Module):
    """One head per level, and the loss over the pixels of all images of this rank.

    Args:
        config: the hyper-parameters, filled.
        build: see :class:`~nnunet_semicon.methods.base.BuildContext`.
    """

    def __init__(self, config: LocalConfig, build: BuildContext) -> None:
        super().__init__()
        self.config = config
        self.size = config.stride if config.sampling == "stride" else config.block_size
        self.n_classes = 2**build.n_heads if build.has_regions else build.n_heads
        self.levels = levels_of(config)
        channels = [build.tap_channels[decoder_tap(level)] for level in self.levels]
        self.heads = nn.ModuleList(_head(config, width) for width in channels)
        remedy = "look whether the labeled scans of the fold have foreground, or take a smaller stride or larger blocks"
        self.negatives = NegativesWatch({f"level {level} of the decoder": remedy for level in self.levels})

    def forward(self, features: Mapping[str, Tensor], classes: Tensor) -> Tensor:
        """Return the weighted sum over levels, ().

        Args:
            features: tap -> (B, C, *s).
            classes: (B, *S) int64 at full resolution, 0 = background, -1 = to be ignored; brought to a map's
                resolution by nearest neighbor.
        """
        config = self.config
        total = classes.new_zeros((), dtype=next(self.heads.parameters()).dtype)
        for index, (level, head) in enumerate(zip(self.levels, self.heads, strict=True)):
            maps = features[decoder_tap(level)]
            vectors, labels = pixel_sets(maps, resized_classes(classes, maps.shape[2:]), config.sampling, self.size)
            if self.training:
                self.negatives.count(index, Pairs(labels, labels >= (0 if config.background_anchors else 1)))
            loss = local_contrast(
                in_float32(head(vectors)),
                labels,
                self.n_classes,
                config.temperature,
                config.form,
                background_anchors=config.background_anchors,
            )
            total = total + config.level_weight[str(level)] * loss
        return total


def _head(config: LocalConfig, channels: int) -> nn.Module:
    """Pointwise convolutions without a nonlinearity between them, applied to sampled pixels: linear layers."""
    if config.head == "one_layer":
        return nn.Linear(channels, config.embedding_dim)
    return nn.Sequential(nn.Linear(channels, HIDDEN), nn.Linear(HIDDEN, config.embedding_dim))
