"""Self-paced contrast: positive pairs that the network finds hard count less until the pace gamma grows.

    L_SPcon^k = 1/(2N) sum_i 1/|P^k(i)| sum_{j in P^k(i)} [ w_ij l_ij + R_gamma(w_ij) ]         (SP-Con, eq. 2)
    w*_ij     = argmin_{w in [0,1]} w l_ij + R_gamma(w)                                         (eq. 3; Alg. 1)
    hard:   R = -gamma w             ->  w* = 1[l_ij <= gamma]
    linear: R = gamma (w^2 / 2 - w)  ->  w* = max(0, 1 - l_ij / gamma)

(Peng et al., NeurIPS 2021, and its supplement.) In code: l_ij ``pair_loss``, w ``weights``. The weights are constants
of the gradient: at the minimum over w, the gradient of the whole objective is w* times that of l (envelope theorem).
Negatives and the denominator are never weighted.

Deviations: gamma = inf, where R is an infinite constant, leaves R out and is plain contrast exactly.
"""

from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_semicon.losses.contrastive import mean_over_positives, pair_losses
from nnunet_semicon.losses.pairs import Pairs

Mode: TypeAlias = Literal["hard", "linear"]


class SelfPaced(NamedTuple):
    """The terms of one self-paced contrast, 0-dim each but for the quartiles.

    Attributes:
        loss: mean of w l + R(w), to be minimized. R <= 0, so it is negative where most pairs are easier than gamma,
            and it falls when gamma grows: its gradient means something, its curve does not.
        weighted: mean of w l, detached; >= 0, for curves.
        unweighted: mean of l, detached: plain contrast, the curve that falls when the embedding learns the label.
        mean_weight: mean of w over all positive pairs, detached, in [0, 1]; 0 without a positive pair.
        quartiles: (3,) first quartile, median and third quartile of w over all positive pairs; 0 without one.
    """

    loss: Tensor
    weighted: Tensor
    unweighted: Tensor
    mean_weight: Tensor
    quartiles: Tensor


def self_paced_weights(pair_loss: Tensor, gamma: float | Tensor, mode: Mode) -> Tensor:
    """w* = argmin_{w in [0,1]} w l + R_gamma(w), elementwise (eq. 3).

    Args:
        pair_loss: l >= 0, any shape, float.
        gamma: pace >= 0, in units of l; inf gives 1 everywhere, 0 selects nothing. A tensor has to be 0-dim, and its
            range is not checked (that would wait for the device).
        mode: "hard" or "linear".

    Returns:
        Weights in [0, 1], shape and dtype of ``pair_loss``, detached.

    Raises:
        ValueError: unknown mode, or gamma negative or NaN.
    """
    pace = _pace(gamma, mode, pair_loss)
    loss = pair_loss.detach()
    if mode == "hard":
        return (loss <= pace).to(loss.dtype)
    return (1 - loss / pace.clamp_min(torch.finfo(loss.dtype).tiny)).clamp(0, 1)


def regularizer(weights: Tensor, gamma: float | Tensor, mode: Mode) -> Tensor:
    """R_gamma(w), elementwise: what a weight below 1 costs.

    Args:
        weights: w in [0, 1], any shape, float.
        gamma: as in :func:`self_paced_weights`; for inf R is left out (0).
        mode: "hard" or "linear".

    Returns:
        R in [-gamma, 0], shape and dtype of ``weights``.

    Raises:
        ValueError: unknown mode, or gamma negative or NaN.
    """
    pace = _pace(gamma, mode, weights)
    pace = pace.masked_fill(pace.isinf(), 0.0)
    return -pace * weights if mode == "hard" else pace * (weights.square() / 2 - weights)


def self_paced_contrast(
    anchors: Tensor, candidates: Tensor, pairs: Pairs, temperature: float, gamma: float | Tensor, mode: Mode
) -> SelfPaced:
    """L_SPcon^k with the weights that minimize it (eq. 2).

    Args:
        anchors: (M, D) embeddings of any scale.
        candidates: (A, D) embeddings in the column order of ``pairs``: the anchors, then the bank.
        pairs: masks (M, A).
        temperature: tau > 0.
        gamma: pace >= 0, in units of l, which is at most log |A(i)| + 2 / tau.
        mode: "hard" or "linear".

    Returns:
        The loss and numbers to watch, all float32 (float64 for float64 input), finite for gamma = inf too.
    """
    losses = pair_losses(anchors, candidates, pairs.candidate, temperature)
    weights = self_paced_weights(losses, gamma, mode)
    weighted = mean_over_positives(weights * losses, pairs.positive)
    cost = mean_over_positives(regularizer(weights, gamma, mode), pairs.positive)
    selected = weights.masked_fill(~pairs.positive, 0.0).sum() / pairs.positive.sum().clamp_min(1)
    unweighted = mean_over_positives(losses.detach(), pairs.positive)
    return SelfPaced(weighted + cost, weighted.detach(), unweighted, selected, _quartiles(weights, pairs.positive))


def _quartiles(weights: Tensor, positive: Tensor) -> Tensor:
    """Quartiles of the weights of positive pairs; masked, not selected: a selection would wait for the device."""
    levels = torch.tensor([0.25, 0.5, 0.75], dtype=weights.dtype, device=weights.device)
    of_positives = weights.masked_fill(~positive, torch.nan).flatten()
    return torch.nanquantile(F.pad(of_positives, (0, 1), value=torch.nan), levels).nan_to_num(0.0)  # never empty


def _pace(gamma: float | Tensor, mode: Mode, like: Tensor) -> Tensor:
    """Check gamma and mode; gamma as a 0-dim tensor of ``like``'s dtype (on the CPU for a number: no transfer)."""
    if mode not in ("hard", "linear"):
        raise ValueError(f"mode must be 'hard' or 'linear', got {mode!r}")
    if not isinstance(gamma, Tensor) and not gamma >= 0:
        raise ValueError(f"gamma must be at least 0, got {gamma}")
    return torch.as_tensor(gamma, dtype=like.dtype)
