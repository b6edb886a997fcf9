"""Contrast of windows of one class with those of all others: which are drawn, how they are embedded, the loss.

    L_PLGCL of the drawn windows                                                            (PLGCL poster, step 3)

(Basak and Yin, CVPR 2023.) The method (:mod:`nnunet_semicon.methods.plgcl`) says what class each pixel has and how sure
the teacher is; the loss is that of :mod:`nnunet_semicon.losses.patch_contrast`, the windows are those of
:mod:`nnunet_semicon.losses.windows`.
"""

from collections.abc import Mapping
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from nnunet_semicon.configuration.config import Settings, open_setting, setting
from nnunet_semicon.configuration.derived import Derived, Filled
from nnunet_semicon.configuration.facts import FEW_EMBEDDINGS, Facts
from nnunet_semicon.data.batch import resized_classes
from nnunet_semicon.errors import UserError
from nnunet_semicon.losses.contrastive import LOWEST_TEMPERATURE
from nnunet_semicon.losses.pairs import pairs_by_label
from nnunet_semicon.losses.patch_contrast import patch_contrast
from nnunet_semicon.losses.windows import (
    Drawn,
    Guidance,
    WindowGrid,
    cosine_weights,
    cut_out,
    draw_windows,
    guidance_weights,
    pixels_in_windows,
    pooled,
)
from nnunet_semicon.methods.base import BuildContext
from nnunet_semicon.methods.negatives import NegativesWatch
from nnunet_semicon.networks.heads import Projector
from nnunet_semicon.networks.precision import in_float32
from nnunet_semicon.networks.queue import ClassQueues
from nnunet_semicon.networks.taps import BOTTLENECK, decoder_tap

PATCHES = 128  # of a step (authors' code)
QUEUE_SIZE = 32  # of each class, where a step has few windows
HIDDEN = 256  # of the head on pooled features
PROJECTOR_GRID = 2  # as for SP-Con: a global average says little after instance normalization
MAP = decoder_tap()  # whose pixels embed a window


class PatchConfig(Settings):
    """Hyper-parameters of the contrast of windows."""

    temperature: float = setting(0.2, "tau of the contrast", low=LOWEST_TEMPERATURE, source="authors' code (warm-up)")
    patch_source: Literal["feature", "image"] = setting(
        "feature",
        "embed a window by its pixels in the decoder's map, or encode it again as an image",
        source="ours; image in the authors' code",
    )
    window: float = setting(
        0.5, "side of a window, as a part of the patch's", low=0, high=1, source="authors' code: 256 of 512 pixels"
    )
    patches: int = open_setting("windows drawn in a step, evenly over the classes; null: derived", low=2)
    guidance: Guidance = setting("entropy", "what decides which windows are drawn", source="poster")
    entropy_bits: bool = setting(
        True, "entropy to base 2, as in the authors' code; otherwise natural, as printed", source="authors' code"
    )
    queue_size: int = open_setting(
        "earlier windows of each class to contrast with too; null: derived", low=0, source="4096 in the code"
    )
    embedding_dim: int = setting(128, "dimension of a window's embedding", low=1, source="authors' code")


def tap_of(config: PatchConfig) -> str:
    """Return the place whose features embed a window."""
    return BOTTLENECK if config.patch_source == "image" else MAP


C = TypeVar("C", bound=PatchConfig)


def derive(config: C, facts: Facts) -> Filled[C]:
    """Fill in how many windows a step has and how many earlier ones are kept; say how large they are.

    Raises:
        UserError: a number of windows that does not fit their source.
    """
    if config.patch_source == "image":
        if config.patches is not None:
            raise UserError(
                f"patches is {config.patches}, but with patch_source=image every window is a row of the student, one "
                "for each unlabeled image: leave patches out"
            )
        patches = Derived(facts.rows.images, "one row of the student for each unlabeled image")
    else:
        patches = Derived(PATCHES, "pooled from a map that is there anyway: as many as published")
    filled = Filled(config).fill(patches=patches)
    windows = filled.config.patches
    enough = windows >= FEW_EMBEDDINGS
    queue = Derived(
        0 if enough else QUEUE_SIZE,
        f"{windows} windows in a step are {'enough' if enough else 'few'} ({FEW_EMBEDDINGS} and more are enough)",
    )
    shape = facts.network.shapes[0]
    grid = WindowGrid.of(shape, config.window)
    side = " x ".join(str(round(s * w / c)) for s, w, c in zip(shape, grid.window, grid.cells, strict=True))
    return filled.fill(queue_size=queue).replace(window=Derived(config.window, f"{side} voxels"))


class PatchTerm(nn.Module):
    """Head, queues and the loss over the windows of all images of this rank.

    Args:
        config: the hyper-parameters, filled.
        build: see :class:`~nnunet_semicon.methods.base.BuildContext`.

    Attributes:
        grid: where windows can be.
        n_classes: classes of pixels, background included; with regions each combination of them.
        from_image: windows are rows of the student, after the images.
    """

    def __init__(self, config: PatchConfig, build: BuildContext) -> None:
        super().__init__()
        self.config = config
        self.n_classes = 2**build.n_heads if build.has_regions else build.n_heads
        self.grid = WindowGrid.of(build.facts.network.shapes[0], config.window)
        self.from_image = config.patch_source == "image"
        channels, dim = build.tap_channels[tap_of(config)], config.embedding_dim
        self.head: nn.Module
        if self.from_image:
            self.head = Projector(channels, build.spatial_dims, PROJECTOR_GRID, out=dim)
        else:
            self.head = nn.Sequential(nn.Linear(channels, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, dim))
        self.queues = ClassQueues(self.n_classes, config.queue_size, dim)
        remedy = "look whether labeled scans show two classes, or train longer on labels alone (supervised_warmup)"
        self.negatives = NegativesWatch({"windows": remedy})

    def windows_of(self, unlabeled: int) -> int:
        """Return how many windows a rank draws that has so many unlabeled images; each may be a row of its student."""
        return unlabeled if self.from_image else self.config.patches

    @torch.no_grad()
    def draw(self, probabilities: Tensor, teacher_map: Tensor, classes: Tensor, windows: int) -> Drawn:
        """Draw windows, as many of each class.

        Args:
            probabilities: (B, K, *S) of the teacher.
            teacher_map: (B, D, *S) the teacher's :data:`MAP`.
            classes: (B, *S) int64, -1 = ignored.
            windows: how many.
        """
        n = self.n_classes
        if self.config.guidance == "cosine":
            weights = cosine_weights(teacher_map, classes, n, self.grid)
        else:
            weights = guidance_weights(probabilities, self.grid, self.config.guidance, self.config.entropy_bits)
        # in another order each time: there may be fewer windows than classes
        slots = torch.randperm(n, device=classes.device)[torch.arange(windows, device=classes.device) % n]
        return draw_windows(weights, pixels_in_windows(classes, n, self.grid), slots)

    def with_windows(self, images: Tensor, classes: Tensor, drawn: Drawn) -> Tensor:
        """Append the drawn windows to the images, where they are to be encoded again."""
        return torch.cat([images, cut_out(images, classes, self.grid, drawn)]) if self.from_image else images

    def forward(self, features: Tensor, classes: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss, (); (R, D) embeddings, detached; and (R,) their classes, -1 = none.

        Args:
            features: of the student for what :meth:`with_windows` returned.
            classes: (B, *S) int64, -1 = ignored.
            drawn: R windows.
        """
        if self.from_image:
            vectors, labels = features[len(classes) :], drawn.classes
        else:
            of_map = resized_classes(classes, features.shape[2:])
            vectors, labels = pooled(features, of_map, self.n_classes, self.grid, drawn)
        embeddings: Tensor = in_float32(self.head(vectors))
        bank, bank_labels = self.queues.bank
        pairs = pairs_by_label(labels, bank_labels)
        if self.training:
            self.negatives.count(0, pairs)
        both = torch.cat([embeddings, bank.to(embeddings.dtype)])
        return patch_contrast(both, pairs, self.n_classes, self.config.temperature), embeddings.detach(), labels

    def after_step(self, windows: Mapping[str, Tensor], step: int) -> None:
        """Queue the windows of this step (none during a warm-up); stop a run that has had no negatives for long."""
        if windows:
            self.queues.push(windows["embeddings"], windows["classes"])
        self.negatives.stop_if_none(step)

    def snapshot(self, probabilities: Tensor, teacher_map: Tensor, classes: Tensor) -> dict[str, Tensor]:
        """Return the windows that are drawn from each image alone; arguments as for :meth:`draw`.

        Returns:
            ``windows`` (B, R, dim) first cells, ``window_classes`` (B, R), -1 = none, and ``cells`` (2, dim): cells of
            an image and of a window.
        """
        each = (slice(i, i + 1) for i in range(len(classes)))
        drawn = [self.draw(probabilities[i], teacher_map[i], classes[i], self.config.patches) for i in each]
        return {
            "windows": torch.stack([self.grid.origins(entry.window) for entry in drawn]),
            "window_classes": torch.stack([entry.classes for entry in drawn]),
            "cells": torch.tensor([self.grid.cells, self.grid.window]),
        }
