"""Color images: how they are recognized, and a change of color that keeps the colors of stained tissue plausible.

nnU-Net scales and shifts each channel (z-score, or 0 to 1), so that the colors of a patch are known up to that alone.
A channel is therefore read within its own range in the patch: its brightest value lets all light pass.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

COLOR_NORMALIZATION = "RGBTo01Normalization"
COLOR_NAMES = (("r", "g", "b"), ("red", "green", "blue"))  # nnU-Net's own conversions of data write the first
STAIN_FACTORS = (0.8, 1.2)
LEAST_LIGHT = 1 / 255  # a darker pixel of 8 bits lets none pass
# optical densities of hematoxylin, eosin and DAB in red, green and blue (Ruifrok and Johnston 2001)
DENSITIES = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


def is_color(channel_names: Sequence[str], normalization_schemes: Sequence[str]) -> bool:
    """Return whether the channels of a dataset are red, green and blue.

    Args:
        channel_names: of ``dataset.json``; R, G, B or red, green, blue in this order, in capitals or not.
        normalization_schemes: of the plans; three times nnU-Net's for colors, whatever the names.
    """
    named = tuple(name.casefold() for name in channel_names) in COLOR_NAMES
    return named or list(normalization_schemes) == [COLOR_NORMALIZATION] * 3


def change_stains(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the amount of each stain by a factor.

    Amounts of hematoxylin, eosin and DAB follow from the optical densities of a pixel, -log of its channels, linearly.
    Values stay in the range of their channel; its brightest value and a constant channel stay. With factors of 1 a
    value moves by at most 1/255 of the range.

    Args:
        images: (N, 3, *S) float32: red, green, blue, each scaled and shifted in any way.
        factors: (N, 3) > 0, one for each stain.
    """
    axes = tuple(range(2, images.ndim))
    darkest = images.amin(axes, keepdim=True)
    extent = images.amax(axes, keepdim=True) - darkest
    light = ((images - darkest) / extent.masked_fill(extent == 0, 1)).clamp_(min=LEAST_LIGHT)
    # densities d = amounts @ DENSITIES, so that the new ones are d @ inverse @ diag(factors) @ DENSITIES
    matrices = torch.linalg.inv(DENSITIES) @ torch.diag_embed(factors) @ DENSITIES
    densities = torch.einsum("nc...,ncd->nd...", light.log_().neg_(), matrices.to(images.device))
    return densities.clamp_(min=0).neg_().exp_().mul_(extent).add_(darkest)


def draw_stains(images: Tensor) -> Tensor:
    """Return factors of the stains, (N, 3), uniform in [0.8, 1.2].

    The strong setting of the HED jitter of Tellez et al. (2019), without its shift: a shift multiplies all intensities
    of a channel by one number, which a network with instance normalization hardly sees.
    """
    return torch.empty(len(images), len(DENSITIES)).uniform_(*STAIN_FACTORS)
