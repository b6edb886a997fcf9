"""Classes that a teacher is confident of.

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
