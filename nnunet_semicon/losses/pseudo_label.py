"""Classes a teacher sees, and where it is confident of them.

    softmax:  y = argmax_c p_c,  confident where max_c p_c >= threshold              (FixMatch, Sohn et al. 2020, eq. 4)
    regions:  y_r = [p_r > 1/2], confident where max(p_r, 1 - p_r) >= threshold for every region r

p: probabilities. Deviations: regions are ours; the paper has none.
"""

import torch
from torch import Tensor

from nnunet_semicon.losses.precision import at_least_float32


@torch.no_grad()
def confident_prediction(logits: Tensor, threshold: float, has_regions: bool) -> tuple[Tensor, Tensor]:
    """Return the prediction in the form of a target, and where it counts.

    Args:
        logits: (B, C, *S) of classes or of regions, any floating dtype.
        threshold: in [0, 1].
        has_regions: sigmoid instead of softmax.

    Returns:
        (B, 1, *S) int64 classes, or (B, C, *S) bool regions; and (B, *S) bool.
    """
    if has_regions:
        p = torch.sigmoid(at_least_float32(logits))
        return p > 0.5, (torch.maximum(p, 1 - p) >= threshold).all(dim=1)
    probability, classes = torch.softmax(at_least_float32(logits), dim=1).max(dim=1, keepdim=True)
    return classes, probability[:, 0] >= threshold


def class_probabilities(logits: Tensor, has_regions: bool) -> Tensor:
    """Return the probability of every class; a pixel with regions has one for each combination of them, bit r for r.

    Args:
        logits: (B, C, *S) of classes, or (B, R, *S) of regions, at full resolution.
        has_regions: whether channels are regions: each of their 2^R combinations is a class.

    Returns:
        (B, C, *S), or (B, 2^R, *S) with regions taken as independent; float32 at least, sums to 1 over axis 1.
    """
    logits = at_least_float32(logits)
    if not has_regions:
        return torch.softmax(logits, dim=1)
    combined = torch.ones_like(logits[:, :1])
    for region in torch.sigmoid(logits).split(1, dim=1):
        combined = torch.cat([combined * (1 - region), combined * region], dim=1)
    return combined
