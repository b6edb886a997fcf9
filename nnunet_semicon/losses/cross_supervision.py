"""Cross supervision: a network learns from the hard prediction of another one.

    L_cps(x) = Dice(P_x, Y_y)   or   CE(P_x, Y_y),      Y_y = argmax sg[P_y]
    Dice(P, Y) = mean_c [ 1 - (2 sum_i p_ic y_ic + s) / (sum_i p_ic^2 + sum_i y_ic + s) ],      s = 1e-5

(CE: CPS, Chen et al., CVPR 2021. Dice: cross teaching, Luo et al., MIDL 2022, and MCSC, Liu et al., BMVC 2023; its form
is that of SSL4MIS.) i: pixels of all images of a rank; c: classes, background included; no threshold.

Deviations: region-based heads (sigmoid, overlapping regions) are not in the papers: a region is predicted where its
probability exceeds 1/2, Dice is the mean and cross-entropy the sum over regions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_semicon.losses.precision import at_least_float32

SMOOTH = 1e-5


@torch.no_grad()
def hard_prediction(logits: Tensor, has_regions: bool) -> Tensor:
    """Return what a network predicts: (B, C, *S) logits -> (B, C, *S) bool, one class or any regions of each pixel."""
    if has_regions:
        return logits > 0
    classes = logits.argmax(dim=1, keepdim=True)
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(1, classes, True)


def cross_dice(logits: Tensor, other_logits: Tensor, has_regions: bool) -> Tensor:
    """Dice loss with the hard prediction of another network.

    Args:
        logits: (B, C, *S) of the network that learns, any floating dtype, any number of spatial axes.
        other_logits: (B, C, *S) of the other network; receives no gradient.
        has_regions: channels are regions instead of classes.

    Returns:
        0-dim float32 (float64 for float64 input) in [0, 1]; a zero connected to the graph for an empty batch.

    Raises:
        ValueError: the shapes differ.
    """
    probabilities, target = _probabilities_and_target(logits, other_logits, has_regions)
    axes = [0, *range(2, logits.dim())]
    shared = (probabilities * target).sum(axes)
    size = probabilities.square().sum(axes) + target.sum(axes)
    return (1 - (2 * shared + SMOOTH) / (size + SMOOTH)).mean()


def cross_entropy(logits: Tensor, other_logits: Tensor, has_regions: bool) -> Tensor:
    """Cross-entropy with the hard prediction of another network, mean over pixels.

    Args:
        logits: (B, C, *S) of the network that learns, any floating dtype, any number of spatial axes.
        other_logits: (B, C, *S) of the other network; receives no gradient.
        has_regions: channels are regions instead of classes.

    Returns:
        0-dim float32 (float64 for float64 input) >= 0; a zero connected to the graph for an empty batch.

    Raises:
        ValueError: the shapes differ.
    """
    _, target = _probabilities_and_target(logits, other_logits, has_regions)
    logits = at_least_float32(logits)
    if has_regions:
        per_pixel = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(dim=1)
    else:
        per_pixel = -(target * torch.log_softmax(logits, dim=1)).sum(dim=1)
    return per_pixel.sum() / max(per_pixel.numel(), 1)


def _probabilities_and_target(logits: Tensor, other_logits: Tensor, has_regions: bool) -> tuple[Tensor, Tensor]:
    if logits.shape != other_logits.shape:
        raise ValueError(
            f"logits of both networks must have the same shape, got {tuple(logits.shape)} and "
            f"{tuple(other_logits.shape)}"
        )
    logits = at_least_float32(logits)
    probabilities = torch.sigmoid(logits) if has_regions else torch.softmax(logits, dim=1)
    return probabilities, hard_prediction(other_logits, has_regions).to(logits.dtype)
