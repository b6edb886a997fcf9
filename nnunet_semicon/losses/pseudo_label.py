"""Classes a teacher sees, and where it is confident of them.

    softmax:  y = argmax_c p_c,  confident where max_c p_c >= threshold              (FixMatch, Sohn et al. 2020, eq. 4)
    regions:  y_r = [p_r > 1/2], confident where max(p_r, 1 - p_r) >= threshold for every region r

p: probabilities. The threshold may fall for a class of which less than a given share would count. Deviations: regions
and that share are ours; the paper has neither.
"""

import math

import torch
from torch import Tensor

from nnunet_semicon.losses.precision import at_least_float32


@torch.no_grad()
def prediction(logits: Tensor, has_regions: bool) -> tuple[Tensor, Tensor]:
    """Return the prediction in the form of a target, and its probability.

    Args:
        logits: (B, C, *S) of classes or of regions, any floating dtype.
        has_regions: sigmoid instead of softmax.

    Returns:
        (B, 1, *S) int64 classes, or (B, C, *S) bool regions; and (B, *S) in [0, 1], float32 at least: for regions the
        probability of the least certain one.
    """
    if has_regions:
        p = torch.sigmoid(at_least_float32(logits))
        return p > 0.5, torch.maximum(p, 1 - p).amin(dim=1)
    probability, classes = torch.softmax(at_least_float32(logits), dim=1).max(dim=1, keepdim=True)
    return classes, probability[:, 0]


def confident_prediction(logits: Tensor, threshold: float, has_regions: bool) -> tuple[Tensor, Tensor]:
    """Return the prediction in the form of a target, and where it counts, (B, *S) bool.

    Args:
        logits: (B, C, *S) of classes or of regions, any floating dtype.
        threshold: in [0, 1].
        has_regions: sigmoid instead of softmax.
    """
    predicted, probability = prediction(logits, has_regions)
    return predicted, probability >= threshold


@torch.no_grad()
def counting(probability: Tensor, classes: Tensor, threshold: float, min_kept: float = 0.0) -> Tensor:
    """Return where a pseudo-label counts, (B, *S) bool: where its probability reaches the threshold of its class.

    Args:
        probability: (B, *S) of the prediction.
        classes: (B, *S) int64, the prediction.
        threshold: in [0, 1].
        min_kept: part of the pixels of each class that count at least, the most probable ones; a class of which fewer
            reach the threshold gets a lower one.
    """
    counts = probability >= threshold
    if min_kept > 0:
        for number in classes.unique():
            own = classes == number
            values = probability[own]
            lowest = values.kthvalue(len(values) - math.ceil(min_kept * len(values)) + 1).values
            counts |= own & (probability >= lowest)
    return counts


@torch.no_grad()
def kept_shares(counts: Tensor, predicted: Tensor, n_heads: int, has_regions: bool) -> Tensor:
    """Return the part of the pseudo-labels that count of each class or region, (n_heads,); 0 where there are none.

    Args:
        counts: (B, *S) bool.
        predicted: (B, 1, *S) int64 classes, or (B, n_heads, *S) bool regions.
        n_heads: number of classes or regions.
        has_regions: channels are regions.
    """
    if not has_regions:
        everywhere = torch.bincount(predicted.flatten(), minlength=n_heads).clamp_min(1)
        return torch.bincount(predicted[:, 0][counts], minlength=n_heads) / everywhere
    axes = (0, *range(2, predicted.ndim))
    return (predicted & counts[:, None]).sum(axes) / predicted.sum(axes).clamp_min(1)


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
