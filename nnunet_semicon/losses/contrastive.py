"""Supervised contrast of embeddings.

    l_ij    = -log [ exp(z_i . z_j / tau) / sum_{a in A(i)} exp(z_i . z_a / tau) ]              (SP-Con, eq. 1)
    L_con^k = 1/(2N) sum_i 1/|P^k(i)| sum_{j in P^k(i)} l_ij

(Peng et al., NeurIPS 2021; L_out of Khosla et al., NeurIPS 2020.) In code: z_i ``anchors``, z_a ``candidates``, A(i)
``candidate_mask``, P^k(i) ``positive``, tau ``temperature``, 2N the number of anchors.

Deviations: the mean is over the anchors that have a positive (with two views per image and known labels, all 2N
have). Embeddings are normalized here, so that every loss is invariant to their scale. Computed in float32 with autocast
off: at tau = 0.07, exp(-2 / tau) = 4e-13 underflows in float16.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_semicon.losses.pairs import Pairs


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off on ``device``; does nothing on a device type that has no autocast."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return half precision as float32 and anything else as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def pair_losses(anchors: Tensor, candidates: Tensor, candidate_mask: Tensor, temperature: float) -> Tensor:
    """l_ij for every anchor i and candidate j (eq. 1), not reduced.

    Args:
        anchors: (M, D) embeddings of any scale and floating dtype.
        candidates: (A, D) embeddings.
        candidate_mask: (M, A) bool, A(i).
        temperature: tau > 0.

    Returns:
        (M, A) float32 (float64 for float64 input), 0 <= l_ij <= log |A(i)| + 2 / tau. Entries outside the mask are 0
        and have no gradient, also in rows without any candidate.

    Raises:
        ValueError: temperature not positive; a mask that does not fit the embeddings.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    expected = (len(anchors), len(candidates))
    if candidate_mask.shape != expected:
        raise ValueError(
            f"candidate_mask must have the shape (anchors, candidates) = {expected}, got {tuple(candidate_mask.shape)}"
        )
    with full_precision(anchors.device):
        z_i = F.normalize(at_least_float32(anchors), dim=1)
        z_a = F.normalize(at_least_float32(candidates), dim=1)
        dtype = torch.promote_types(z_i.dtype, z_a.dtype)
        similarity = z_i.to(dtype) @ z_a.to(dtype).T / temperature
        # The lowest finite number, not -inf: a row without candidates would give (-inf) - (-inf) on the way back.
        in_denominator = similarity.masked_fill(~candidate_mask, torch.finfo(dtype).min)
        losses = torch.logsumexp(in_denominator, dim=1, keepdim=True) - similarity
        return losses.masked_fill(~candidate_mask, 0.0)


def mean_over_positives(values: Tensor, positive: Tensor) -> Tensor:
    """1/(2N) sum_i 1/|P(i)| sum_{j in P(i)} values_ij: the mean over each anchor's positives, then over anchors.

    Args:
        values: (M, A) float.
        positive: (M, A) bool, P(i).

    Returns:
        0-dim; anchors without a positive do not count. Without any anchor a zero that is connected to the graph.
    """
    counts = positive.sum(dim=1)
    per_anchor = values.masked_fill(~positive, 0.0).sum(dim=1) / counts.clamp_min(1)
    return per_anchor.sum() / (counts > 0).sum().clamp_min(1)


def supervised_contrast(anchors: Tensor, candidates: Tensor, pairs: Pairs, temperature: float) -> Tensor:
    """L_con^k: every anchor is drawn to its positives and pushed from all other candidates.

    Args:
        anchors: (M, D) embeddings of any scale.
        candidates: (A, D) embeddings in the column order of ``pairs``: the anchors, then the bank.
        pairs: masks (M, A).
        temperature: tau > 0.

    Returns:
        0-dim float32 (float64 for float64 input).
    """
    losses = pair_losses(anchors, candidates, pairs.candidate, temperature)
    return mean_over_positives(losses, pairs.positive)
