"""nnU-Net's Dice and cross-entropy with a weight per pixel, at one scale.

    CE   = sum_i v_i w_i ce_i / sum_i v_i
    Dice = mean over classes k (and rows) of  (2 sum_i v_i w_i p_ik y_ik + s) / (sum_i v_i w_i (p_ik + y_ik) + s)
    loss = weight_ce CE - weight_dice Dice

w_i in [0, 1]: the weight of pixel i; v_i: 1 where the pixel is not ignored, otherwise 0; p: probabilities; y: the
target, one channel per class; s: ``smooth``. With all w_i = 1 this is the loss of nnU-Net v2 (Isensee et al., Nature
Methods 2021, with the soft Dice of its code).

CE is divided by the number of pixels, not by the sum of weights: several processes that average their losses then
compute the loss of one process with all rows.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_semicon.losses.precision import at_least_float32, full_precision

SMALLEST_DENOMINATOR = 1e-8  # of Dice, as in nnU-Net's code: reached only with smooth=0


def weighted_dice_ce(
    logits: Tensor,
    target: Tensor,
    weight: Tensor,
    *,
    has_regions: bool,
    ignore_label: int | None,
    batch_dice: bool,
    do_bg: bool,
    smooth: float,
    weight_ce: float = 1.0,
    weight_dice: float = 1.0,
    gather_sums: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return the loss of one scale. Where every weight is 0, or every pixel is ignored, no gradient flows.

    Args:
        logits: (B, K, *S), any floating dtype; computed in float32 at least.
        target: (B, 1, *S) classes; with regions (B, K, *S) of 0 or 1, with an ignore label (B, K + 1, *S); any dtype.
        weight: (B, *S) in [0, 1], any dtype.
        has_regions: sigmoid instead of softmax; channels are regions.
        ignore_label: value of the target that marks ignored pixels; with regions the last channel marks them, whatever
            the value. None: every pixel counts.
        batch_dice: sums of Dice over all rows instead of row by row.
        do_bg: whether channel 0 counts in Dice.
        smooth: added to numerator and denominator of Dice, at least 0.
        weight_ce: of the cross-entropy.
        weight_dice: of Dice.
        gather_sums: maps the sums (3, K) of this process to those of all processes (P, 3, K), for ``batch_dice``; every
            process must call. None: one process.

    Returns:
        () float32, or float64 for such logits. With regions and an ignore label the cross-entropy is summed over
        regions, otherwise averaged, as in nnU-Net.
    """
    with full_precision(logits.device):
        logits = at_least_float32(logits)
        target, valid = _split(target, has_regions, ignore_label)
        weight = torch.where(valid, weight[:, None].to(logits.dtype), 0.0)
        loss = logits.new_zeros(())
        if weight_ce:
            # with an ignore label nnU-Net divides by pixels alone, otherwise by pixels times regions
            terms = logits.shape[1] if has_regions and ignore_label is None else 1
            total = (_cross_entropies(logits, target, has_regions) * weight).sum()
            loss = loss + weight_ce * total / (valid.sum() * terms).clamp_min(1)
        if weight_dice:
            sums = _dice_sums(logits, target, weight, has_regions)[:, :, 0 if do_bg else 1 :]
            if batch_dice:
                sums = sums.sum(dim=1)
                sums = sums if gather_sums is None else gather_sums(sums).sum(dim=0)
            both, predicted, true = sums
            dice = (2 * both + smooth) / (predicted + true + smooth).clamp_min(SMALLEST_DENOMINATOR)
            loss = loss - weight_dice * dice.sum() / max(1, dice.numel())
        return loss


def _split(target: Tensor, has_regions: bool, ignore_label: int | None) -> tuple[Tensor, Tensor]:
    """Return the target without its ignored pixels, and (B, 1, *S) bool: the pixel is not ignored."""
    if ignore_label is None:
        return target, torch.ones_like(target[:, :1], dtype=torch.bool)
    if has_regions:
        return target[:, :-1], target[:, -1:] == 0
    valid = target != ignore_label
    return torch.where(valid, target, 0), valid


def _cross_entropies(logits: Tensor, target: Tensor, has_regions: bool) -> Tensor:
    """Return that of every pixel, (B, 1, *S), or with regions (B, K, *S)."""
    if has_regions:
        return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
    return F.cross_entropy(logits, target[:, 0].long(), reduction="none")[:, None]


def _dice_sums(logits: Tensor, target: Tensor, weight: Tensor, has_regions: bool) -> Tensor:
    """Return (3, B, K): weighted sums over pixels of prediction times target, of the prediction, and of the target."""
    if has_regions:
        p, y = torch.sigmoid(logits), target.to(logits.dtype)
    else:
        p, y = torch.softmax(logits, dim=1), torch.zeros_like(logits).scatter_(1, target.long(), 1.0)
    weighted = p * weight
    return torch.stack([maps.flatten(2).sum(dim=2) for maps in (weighted * y, weighted, y * weight)])
