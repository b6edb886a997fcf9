"""The network as a method sees it: logits and features of a batch."""

from typing import Any

import torch
from torch import Tensor, nn

from nnunet_semicon.methods.base import StudentOutput, finest
from nnunet_semicon.networks.feature_dropout import FeatureDropout
from nnunet_semicon.networks.precision import in_float32
from nnunet_semicon.networks.taps import FeatureTaps


class NetworkStudent:
    """Runs the network that is trained.

    Args:
        network: compiled and wrapped as nnU-Net trains it.
        plain: the same without the wrappers of DDP and torch.compile.
        taps: catch the features.
        encoder_only: the encoder alone runs, past the wrappers; there are no logits.
        dropout: perturbs features; None: the method never asks for it.
    """

    def __init__(
        self, network: nn.Module, plain: Any, taps: FeatureTaps, encoder_only: bool, dropout: FeatureDropout | None
    ) -> None:
        self.network, self.plain, self.taps = network, plain, taps
        self.encoder_only, self.dropout = encoder_only, dropout

    def __call__(self, images: Tensor, perturb: Tensor | None = None) -> StudentOutput:
        """Return logits and features of images (B, C, *S); ``perturb`` (B,) bool: rows that lose feature channels."""
        if self.encoder_only:
            return self.encode(images)
        self._perturb(perturb, images)
        logits = in_float32(self.network(images))
        self._perturb(None, images)  # nnU-Net's validation calls the network itself
        return StudentOutput(logits, self.taps.take())

    def encode(self, images: Tensor) -> StudentOutput:
        """Return the features of images (B, C, *S), past DDP and the compiled network."""
        self._perturb(None, images)
        self.plain.encoder(images)
        return StudentOutput([], self.taps.take())

    @torch.no_grad()
    def no_grad(self, images: Tensor) -> Tensor:
        """Return the finest logits (B, K, *S) in evaluation mode, past DDP, without a gradient."""
        self._perturb(None, images)
        was_training = self.plain.training
        self.plain.eval()
        try:
            logits: Tensor = finest(in_float32(self.plain(images)))
        finally:
            self.plain.train(was_training)
        self.taps.take()  # of this pass: nobody reads them
        return logits

    def _perturb(self, rows: Tensor | None, images: Tensor) -> None:
        if self.dropout is not None:
            self.dropout.draw(rows, images)
        elif rows is not None:
            raise ValueError("features are perturbed only for a method with Needs(perturb=True)")
