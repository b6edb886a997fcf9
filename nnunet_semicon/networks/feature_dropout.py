"""Dropout of whole channels of the encoder's maps, for chosen rows of a batch (UniMatch, Yang et al., CVPR 2023).

    g = f * m / (1 - p),   m_c in {0, 1} with P(m_c = 0) = p, one m for each map and row

f: a map; g: what the decoder gets; p = 0.5.
"""

from typing import Any

import torch
from torch import Tensor, nn

from nnunet_semicon.errors import UserError

RATE = 0.5  # part of the channels that are set to 0


class FeatureDropout:
    """Perturbs the maps that the decoder gets, in a hook on the encoder.

    Attach it before the first call of a compiled network: later hooks are silently ignored.

    Args:
        network: the plain network (neither compiled nor wrapped).

    Raises:
        UserError: the network has no encoder of nnU-Net's kind.
    """

    def __init__(self, network: Any) -> None:
        encoder = getattr(network, "encoder", None)
        if encoder is None or not hasattr(encoder, "output_channels"):
            raise UserError(
                f"the network {type(network).__name__} has no encoder whose features can be dropped; expected one of "
                "nnU-Net's U-Nets (PlainConvUNet, ResidualEncoderUNet): use other plans"
            )
        self.channels = [int(count) for count in encoder.output_channels]
        self.factors: list[Tensor] = []  # of each map, (B, C, 1, ...); empty: nothing is dropped
        encoder.register_forward_hook(self._hook)

    def draw(self, rows: Tensor | None, images: Tensor) -> None:
        """Draw the factors of the next forward pass.

        Args:
            rows: (B,) bool, the rows to perturb; None: no row.
            images: (B, C, *S) of that pass.
        """
        if rows is None:
            self.factors = []
            return
        shape = (len(rows), -1, *[1] * (images.ndim - 2))
        kept = [torch.rand(len(rows), count) >= RATE for count in self.channels]
        self.factors = [
            torch.where(rows.cpu()[:, None], keep / (1 - RATE), 1.0).view(shape).to(images.device) for keep in kept
        ]

    def _hook(self, module: nn.Module, inputs: tuple[Tensor, ...], maps: list[Tensor]) -> list[Tensor] | None:
        if not self.factors:
            return None
        return [own * factor.to(own.dtype) for own, factor in zip(maps, self.factors, strict=True)]
