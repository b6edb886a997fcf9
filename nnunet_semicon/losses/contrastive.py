"""Supervised contrast of embeddings.

    l_ij    = -log [ exp(z_i . z_j / tau) / sum_{a in A(i)} exp(z_i . z_a / tau) ]              (SP-Con, eq. 1)
    L_con^k = 1/(2N) sum_i 1/|P^k(i)| sum_{j in P^k(i)} l_ij

(Peng et al., NeurIPS 2021; L_out of Khosla et al., NeurIPS 2020.) In code: A(i) and P^k(i) ``pairs``, tau
``temperature``, 2N the number of anchors, log sum_a exp(...) ``log_denominators``. Computed without a matrix of all
pairs (:mod:`nnunet_semicon.losses.streaming`).

Deviations: the mean is over the anchors that have a positive (with two views per image and known labels, all 2N
have), in each set, then over the sets that have such an anchor. Embeddings are normalized here, so that every loss is
invariant to their scale. Computed in float32 with autocast off: at tau = 0.07, exp(-2 / tau) = 4e-13 underflows in
float16; below tau = 0.025, where float32 could overflow, in float64.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_semicon.losses.pairs import Pairs, masks
from nnunet_semicon.losses.precision import at_least_float32, full_precision
from nnunet_semicon.losses.streaming import group_logsumexp, positive_similarity

FLOAT32_TEMPERATURE = 0.025  # exp(1 / 0.025) = 2e17: sums and products of such numbers fit into float32
LOWEST_TEMPERATURE = 0.005  # exp(1 / 0.005) = 7e86: likewise in float64


def scaled_unit_vectors(embeddings: Tensor, pairs: Pairs, temperature: float) -> Tensor:
    """Return z / sqrt(tau), whose products are z_i . z_j / tau.

    Args:
        embeddings: (N, D), or (K, N, D), of any scale and floating dtype.
        pairs: of these embeddings.
        temperature: tau >= 0.005.

    Returns:
        (K, N, D) float32, or float64 for float64 input and for temperatures below 0.025.

    Raises:
        ValueError: temperature too low; pairs that do not fit the embeddings.
    """
    if not temperature >= LOWEST_TEMPERATURE:
        raise ValueError(f"temperature must be at least {LOWEST_TEMPERATURE}, got {temperature}")
    sets = embeddings if embeddings.dim() == 3 else embeddings[None]
    if sets.shape[:2] != pairs.labels.shape:
        raise ValueError(
            f"pairs must have one label for each embedding, got {tuple(pairs.labels.shape)} labels and embeddings of "
            f"shape {tuple(embeddings.shape)}"
        )
    wanted = at_least_float32(sets) if temperature >= FLOAT32_TEMPERATURE else sets.double()
    return F.normalize(wanted, dim=2) / temperature**0.5


def log_denominators(z: Tensor, label_sets: Sequence[Pairs]) -> list[Tensor]:
    """Return log sum_{a in A(i)} exp(z_i . z_a) for each of several labelings of the same vectors.

    A(i) depends on which labels are known, not on their values: one pass over all pairs serves every labeling.

    Args:
        z: (K, N, D) from :func:`scaled_unit_vectors`.
        label_sets: labelings with the same number M of possible anchors.

    Returns:
        For each labeling (K, M), finite also where an anchor has no candidate.
    """
    code = torch.zeros_like(label_sets[0].labels)
    for bit, pairs in enumerate(label_sets):
        code += pairs.known.to(code.dtype) << bit
    if len(label_sets) == 1:
        patterns, groups = [1], code - 1
    else:  # the vectors whose labels are known in the same labelings form a group
        found, groups = code.unique(return_inverse=True)
        patterns = found.tolist()
    sums = group_logsumexp(z, groups, len(patterns), label_sets[0].n_anchors)
    return [
        log_sum(sums[:, :, [index for index, pattern in enumerate(patterns) if pattern >> bit & 1]])
        for bit in range(len(label_sets))
    ]


def log_sum(logarithms: Tensor) -> Tensor:
    """Return logsumexp over the last axis, with a finite gradient where all terms are -inf or there is none."""
    lowest = torch.finfo(logarithms.dtype).min
    return torch.logsumexp(F.pad(logarithms, (0, 1), value=lowest).clamp_min(lowest), dim=-1)


def mean_over_anchors(values: Tensor, is_anchor: Tensor) -> Tensor:
    """Mean over the anchors of each set, then over the sets that have one; (K, M) -> 0-dim.

    Without any anchor a zero that is connected to the graph.
    """
    counts = is_anchor.sum(dim=1)
    per_set = torch.where(is_anchor, values, 0.0).sum(dim=1) / counts.clamp_min(1)
    return per_set.sum() / (counts > 0).sum().clamp_min(1)


def supervised_contrast(embeddings: Tensor, pairs: Pairs, temperature: float) -> Tensor:
    """L_con^k: every anchor is drawn to its positives and pushed from all other candidates.

    Args:
        embeddings: (N, D), or (K, N, D), of any scale: possible anchors, then the other candidates.
        pairs: labels of the embeddings.
        temperature: tau >= 0.005.

    Returns:
        0-dim float32 (float64 for float64 input).
    """
    with full_precision(embeddings.device):
        z = scaled_unit_vectors(embeddings, pairs, temperature)
        (log_denominator,) = log_denominators(z, [pairs])
        similarity, n_positives = positive_similarity(z, pairs.labels, pairs.n_anchors)
        loss = mean_over_anchors(log_denominator - similarity, pairs.is_anchor & (n_positives > 0))
        return loss.to(at_least_float32(embeddings).dtype)


def pair_losses(embeddings: Tensor, pairs: Pairs, temperature: float) -> Tensor:
    """l_ij for every anchor i and candidate j of one set (eq. 1): a matrix, for pictures of a few images.

    Args:
        embeddings: (N, D) embeddings of any scale and floating dtype.
        pairs: labels of the embeddings, K = 1.
        temperature: tau >= 0.005.

    Returns:
        (M, N) float32 (float64 for float64 input), 0 <= l_ij <= log |A(i)| + 2 / tau. Entries outside A(i) are 0.
    """
    with full_precision(embeddings.device):
        z = scaled_unit_vectors(embeddings, pairs, temperature)[0]
        similarity = z[: pairs.n_anchors] @ z.T
        candidate = masks(pairs).candidate
        denominator = log_sum(similarity.masked_fill(~candidate, -torch.inf))
        losses = (denominator[:, None] - similarity).masked_fill(~candidate, 0.0)
        return losses.to(at_least_float32(embeddings).dtype)
