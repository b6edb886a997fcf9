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

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_semicon.losses import streaming
from nnunet_semicon.losses.contrastive import log_denominators, mean_over_anchors, pair_losses, scaled_unit_vectors
from nnunet_semicon.losses.pairs import Pairs, masks
from nnunet_semicon.losses.precision import at_least_float32, full_precision
from nnunet_semicon.losses.streaming import Mode, paced_objective, positive_similarity


class SelfPaced(NamedTuple):
    """The terms of one self-paced contrast, 0-dim each.

    Attributes:
        loss: mean of w l + R(w), to be minimized. R <= 0, so it is negative where most pairs are easier than gamma,
            and it falls when gamma grows: its gradient means something, its curve does not.
        weighted: mean of w l, detached; >= 0, for curves.
        unweighted: mean of l, detached: plain contrast, the curve that falls when the embedding learns the label.
        mean_weight: mean of w over all positive pairs, detached, in [0, 1]; 0 without a positive pair.
    """

    loss: Tensor
    weighted: Tensor
    unweighted: Tensor
    mean_weight: Tensor


def self_paced_weights(pair_loss: Tensor, gamma: float, mode: Mode) -> Tensor:
    """w* = argmin_{w in [0,1]} w l + R_gamma(w), elementwise (eq. 3).

    Args:
        pair_loss: l >= 0, any shape, float.
        gamma: pace >= 0, in units of l; inf gives 1 everywhere, 0 selects nothing.
        mode: "hard" or "linear".

    Returns:
        Weights in [0, 1], shape and dtype of ``pair_loss``, detached.

    Raises:
        ValueError: unknown mode, or gamma negative or NaN.
    """
    _check(gamma, mode)
    return streaming.pair_weights(pair_loss.detach(), gamma, mode)


def self_paced_contrast(embeddings: Tensor, pairs: Pairs, temperature: float, gamma: float, mode: Mode) -> SelfPaced:
    """L_SPcon^k with the weights that minimize it (eq. 2).

    Args:
        embeddings: (N, D), or (K, N, D), of any scale: possible anchors, then the other candidates.
        pairs: labels of the embeddings.
        temperature: tau >= 0.005.
        gamma: pace >= 0, in units of l, which is at most log |A(i)| + 2 / tau.
        mode: "hard" or "linear".

    Returns:
        The loss and numbers to watch, all float32 (float64 for float64 input), finite for gamma = inf too.

    Raises:
        ValueError: unknown mode, or gamma negative or NaN.
    """
    return self_paced_contrasts(embeddings, [pairs], temperature, gamma, mode)[0]


def self_paced_contrasts(
    embeddings: Tensor, label_sets: Sequence[Pairs], temperature: float, gamma: float, mode: Mode
) -> list[SelfPaced]:
    """:func:`self_paced_contrast` of several labelings of the same embeddings, over denominators made once."""
    _check(gamma, mode)
    dtype = at_least_float32(embeddings).dtype
    with full_precision(embeddings.device):
        z = scaled_unit_vectors(embeddings, label_sets[0], temperature)
        denominators = log_denominators(z, label_sets)
        terms = [_term(z, d, p, gamma, mode) for d, p in zip(denominators, label_sets, strict=True)]
    return [SelfPaced(*(value.to(dtype) for value in term)) for term in terms]


def _term(z: Tensor, log_denominator: Tensor, pairs: Pairs, gamma: float, mode: Mode) -> SelfPaced:
    similarity, n_positives = positive_similarity(z, pairs.labels, pairs.n_anchors)
    is_anchor = pairs.is_anchor & (n_positives > 0)
    plain = mean_over_anchors(log_denominator - similarity, is_anchor)
    if math.isinf(gamma):
        constant = plain.detach()
        return SelfPaced(plain, constant, constant, is_anchor.any().to(plain.dtype))
    paced = paced_objective(z, log_denominator, pairs.labels, gamma, mode)
    loss, weighted = (mean_over_anchors(v / n_positives.clamp_min(1), is_anchor) for v in paced[:2])
    n_pairs = torch.where(is_anchor, n_positives, 0.0).sum()
    mean_weight = torch.where(is_anchor, paced.weights, 0.0).sum() / n_pairs.clamp_min(1)
    return SelfPaced(loss, weighted, plain.detach(), mean_weight)


@torch.no_grad()
def weight_quartiles(embeddings: Tensor, pairs: Pairs, temperature: float, gamma: float, mode: Mode) -> Tensor:
    """First quartile, median and third quartile of w over all positive pairs: a matrix of pairs, for a few images.

    Args: as for :func:`self_paced_contrast`, K = 1.

    Returns:
        (3,) in [0, 1]; 0 without a positive pair.
    """
    weights = self_paced_weights(pair_losses(embeddings, pairs, temperature), gamma, mode)
    levels = torch.tensor([0.25, 0.5, 0.75], dtype=weights.dtype, device=weights.device)
    # masked, not selected: a selection would wait for the device
    of_positives = weights.masked_fill(~masks(pairs).positive, torch.nan).flatten()
    return torch.nanquantile(F.pad(of_positives, (0, 1), value=torch.nan), levels).nan_to_num(0.0)  # never empty


def _check(gamma: float, mode: Mode) -> None:
    if mode not in ("hard", "linear"):
        raise ValueError(f"mode must be 'hard' or 'linear', got {mode!r}")
    if not gamma >= 0:
        raise ValueError(f"gamma must be at least 0, got {gamma}")
