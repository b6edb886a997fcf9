"""Every contrast of many vectors, exactly, without a matrix of all pairs.

    R_iy = log sum_{a in group y, a != i} exp(z_i . z_a / tau)                   :func:`group_logsumexp`
    m_i  = 1/|P(i)| sum_{p in P(i)} z_i . z_p / tau                              :func:`positive_similarity`
    o_i  = sum_{p in P(i)} min_{w in [0,1]} [ w l_ip + R_gamma(w) ]              :func:`paced_objective`
    b_i  = sum_{p in P(i)} log(1 + exp(l_ip))                                    :func:`binary_objective`

P(i): the other vectors with i's label; l_ip = L_i - z_i . z_p / tau. Each loss of :mod:`nnunet_semicon.losses` that
contrasts vectors is made of these: the denominators follow from R_iy, whichever classes they hold and however they
weigh them; the mean over positives needs no pairs, only the sum of each class; only self-paced weights, and positives
that stand in their own denominator alone, look at single positive pairs. Similarities are made tile by tile, forward
and again backward, so that memory grows with N D and not with N^2. They are symmetric: a tile of two groups of anchors
serves both, which halves products and exponentials.

Vectors come in sets (K, N, D) that do not meet, such as the blocks of a block sampling; in each set the first M vectors
are the anchors, so rows of non-anchors are never computed.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_semicon.losses.pairs import class_slots
from nnunet_semicon.losses.precision import full_precision

Mode: TypeAlias = Literal["hard", "linear"]
PairMode: TypeAlias = Literal["hard", "linear", "binary"]

CPU_TILE = 2**18  # pairs: 1 MB of float32 stays in the cache of a core
CUDA_TILE = 2**26  # pairs: 256 MB of float32, large enough to keep every unit busy
SHARE = 16  # a tile and its temporaries take at most a fourth of the free memory


def group_logsumexp(z: Tensor, groups: Tensor, n_groups: int, n_anchors: int) -> Tensor:
    """R_iy: for each anchor and each group of vectors, the log of the sum of exp(z_i . z_a) without a = i.

    Args:
        z: (K, N, D) float32 or float64 vectors whose products do not exceed 80 (float32) in size: divide unit vectors
            by sqrt(tau).
        groups: (K, N) int64 in [0, n_groups); negative: the vector is in no group.
        n_groups: G.
        n_anchors: M <= N.

    Returns:
        (K, M, G) dtype of ``z``; -inf where a group has nothing but the anchor itself, with a gradient of 0.
    """
    members = torch.zeros(*groups.shape, n_groups, dtype=z.dtype, device=z.device)
    members.scatter_(2, groups.clamp_min(0)[..., None], (groups >= 0).to(z.dtype)[..., None])
    result: Tensor = _GroupLogSumExp.apply(z, members, n_anchors)
    return result


def positive_similarity(z: Tensor, labels: Tensor, n_anchors: int) -> tuple[Tensor, Tensor]:
    """m_i from the sum of each class: z_i . (S_c(i) - z_i) / (n_c(i) - 1).

    Args:
        z: (K, N, D) vectors.
        labels: (K, N) int64, any values; equal values of one set are positives.
        n_anchors: M.

    Returns:
        (K, M) mean product of anchor and positives, 0 without a positive; and (K, M) their number, same dtype.
    """
    slots = class_slots(labels)
    flat = z.flatten(0, 1)
    sums = torch.zeros_like(flat).index_add(0, slots.flatten(), flat)
    counts = flat.new_zeros(len(flat)).index_add(0, slots.flatten(), flat.new_ones(len(flat)))
    anchors, of_anchors = z[:, :n_anchors], slots[:, :n_anchors]
    n_positives = counts[of_anchors] - 1
    total = (anchors * (sums[of_anchors] - anchors)).sum(2)
    return total / n_positives.clamp_min(1), n_positives


class PacedObjective(NamedTuple):
    """Sums over the positives of each anchor, (K, M) each.

    Attributes:
        objective: w l + R_gamma(w) at the weights that minimize it.
        weighted: w l, detached.
        weights: w, detached.
    """

    objective: Tensor
    weighted: Tensor
    weights: Tensor


def paced_objective(z: Tensor, log_denominator: Tensor, labels: Tensor, gamma: float, mode: Mode) -> PacedObjective:
    """Self-paced weights of all positive pairs (SP-Con, eq. 2 and 3), pair by pair but never all at once.

    Args:
        z: (K, N, D) as in :func:`group_logsumexp`.
        log_denominator: (K, M) L_i; finite for every anchor that has a positive.
        labels: (K, N) int64; equal values are positives, negative values have none.
        gamma: finite threshold >= 0.
        mode: "hard" or "linear".
    """
    return PacedObjective(*_PairObjective.apply(z, log_denominator, labels, gamma, mode))


def binary_objective(z: Tensor, log_negatives: Tensor, labels: Tensor) -> Tensor:
    """b_i: each positive against the negatives of its anchor, not against the other positives.

    log(1 + exp(l)) = max_w [ w l + H(w) ] with the entropy H: the same sum over pairs as a self-paced one, with other
    weights, w = 1 / (1 + exp(-l)).

    Args:
        z: (K, N, D) as in :func:`group_logsumexp`.
        log_negatives: (K, M) L_i, finite: log sum of exp(z_i . z_a) over what the anchor is pushed from.
        labels: (K, N) int64; equal values are positives, negative values have none.

    Returns:
        (K, M).
    """
    objective: Tensor = _PairObjective.apply(z, log_negatives, labels, 0.0, "binary")[0]
    return objective


class _GroupLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, members: Tensor, n_anchors: int) -> Tensor:
        sums = z.new_zeros(len(z), n_anchors, members.shape[2])
        with full_precision(z.device):
            for sets, rows, columns, is_shared in _tiles(z, n_anchors):
                e = torch.bmm(z[sets, rows], z[sets, columns].mT).exp_()
                if rows == columns:
                    e.diagonal(dim1=1, dim2=2).zero_()
                sums[sets, rows].baddbmm_(e, members[sets, columns])
                if is_shared:
                    sums[sets, columns].baddbmm_(e.mT, members[sets, rows])
        result = sums.log_()
        ctx.save_for_backward(z, members, result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        z, members, result = ctx.saved_tensors
        n_anchors = result.shape[1]
        # d loss / d (z_i . z_j) = exp(z_i . z_j) (pull_i,y(j) + pull_j,y(i)), one thin product for a whole tile
        pull = z.new_zeros(members.shape)
        pull[:, :n_anchors] = torch.where(result.isinf(), 0.0, grad * torch.exp(-result))
        left, right = torch.cat([pull, members], dim=2), torch.cat([members, pull], dim=2)
        grad_z = torch.zeros_like(z)
        with full_precision(z.device):
            for sets, rows, columns, _ in _tiles(z, n_anchors):
                w = torch.bmm(z[sets, rows], z[sets, columns].mT).exp_()
                w *= torch.bmm(left[sets, rows], right[sets, columns].mT)
                if rows == columns:
                    w.diagonal(dim1=1, dim2=2).zero_()
                _add_product(grad_z, w, z, sets, rows, columns)
        return grad_z, None, None


class _PairObjective(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, log_denominator: Tensor, labels: Tensor, gamma: float, mode: PairMode
    ) -> tuple[Tensor, Tensor, Tensor]:
        objective, weighted, weights = (torch.zeros_like(log_denominator) for _ in range(3))
        with full_precision(z.device):
            for sets, rows, columns, is_shared in _tiles(z, log_denominator.shape[1]):
                similarity = torch.bmm(z[sets, rows], z[sets, columns].mT)
                positive = _positive(labels, sets, rows, columns)
                directions = [(rows, similarity, positive)]
                if is_shared:
                    directions.append((columns, similarity.mT, positive.mT))
                for own, s, is_positive in directions:
                    loss = log_denominator[sets, own, None] - s
                    w = pair_weights(loss, gamma, mode).masked_fill_(~is_positive, 0.0)
                    # a weight of 0 may belong to a denominator that is -inf
                    loss = loss.masked_fill_(~is_positive, 0.0).mul_(w)
                    weighted[sets, own] += loss.sum(2)
                    weights[sets, own] += w.sum(2)
                    objective[sets, own] += loss.add_(regularizer(w, gamma, mode)).sum(2)
        ctx.save_for_backward(z, log_denominator, labels, weights)
        ctx.gamma, ctx.mode = gamma, mode
        ctx.mark_non_differentiable(weighted, weights)
        return objective, weighted, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, Tensor, None, None, None]:
        z, log_denominator, labels, weights = ctx.saved_tensors
        grad_z = torch.zeros_like(z)
        with full_precision(z.device):
            for sets, rows, columns, is_shared in _tiles(z, log_denominator.shape[1]):
                similarity = torch.bmm(z[sets, rows], z[sets, columns].mT)
                w = pair_weights(log_denominator[sets, rows, None] - similarity, ctx.gamma, ctx.mode)
                w *= grad[sets, rows, None]
                if is_shared:
                    other = pair_weights(log_denominator[sets, None, columns] - similarity, ctx.gamma, ctx.mode)
                    w += other.mul_(grad[sets, None, columns])
                elif rows == columns:
                    w = w + w.mT
                w.masked_fill_(~_positive(labels, sets, rows, columns), 0.0)
                _add_product(grad_z, w.neg_(), z, sets, rows, columns)
        # the objective is stationary in the weights: their own change adds nothing (envelope theorem)
        return grad_z, grad * weights, None, None, None


def pair_weights(loss: Tensor, gamma: float, mode: PairMode) -> Tensor:
    """w* where w l + R_gamma(w) is stationary, elementwise.

    hard 1[l <= gamma], linear max(0, 1 - l / gamma), binary 1 / (1 + exp(-l)).
    """
    if mode == "binary":
        return torch.sigmoid(loss)
    if mode == "hard":
        return (loss <= gamma).to(loss.dtype)
    return (1 - loss / max(gamma, torch.finfo(loss.dtype).tiny)).clamp_(0, 1)


def regularizer(weights: Tensor, gamma: float, mode: PairMode) -> Tensor:
    """R_gamma(w), elementwise: hard -gamma w, linear gamma (w^2 / 2 - w), binary -w log w - (1 - w) log(1 - w)."""
    if mode == "binary":
        return -torch.xlogy(weights, weights) - torch.xlogy(1 - weights, 1 - weights)
    return -gamma * weights if mode == "hard" else gamma * (weights.square() / 2 - weights)


def _add_product(grad_z: Tensor, w: Tensor, z: Tensor, sets: slice, rows: slice, columns: slice) -> None:
    """Add what one tile of d loss / d (z_i . z_j) gives to the gradient of its rows and of its columns."""
    grad_z[sets, rows].baddbmm_(w, z[sets, columns])
    if rows != columns:
        grad_z[sets, columns].baddbmm_(w.mT, z[sets, rows])


def _positive(labels: Tensor, sets: slice, rows: slice, columns: slice) -> Tensor:
    own = labels[sets, rows, None]
    positive = (own == labels[sets, None, columns]) & (own >= 0)
    if rows == columns:
        positive.diagonal(dim1=1, dim2=2).zero_()
    return positive


def _tiles(z: Tensor, n_anchors: int) -> Iterator[tuple[slice, slice, slice, bool]]:
    """Yield (sets, rows, columns, whether the columns are other anchors): every pair with an anchor, once.

    Pairs of two anchors come in one order only; in tiles on the diagonal (rows == columns), in both.
    """
    n_sets, n = z.shape[:2]
    pairs = _tile_size(z)
    side = min(max(n, 1), int(pairs**0.5))
    at_once = max(1, pairs // side**2)
    for first in range(0, n_sets, at_once):
        sets = slice(first, min(first + at_once, n_sets))
        for rows in _ranges(0, n_anchors, side):
            for columns in _ranges(rows.start, n_anchors, side):
                yield sets, rows, columns, columns != rows
            for columns in _ranges(n_anchors, n, side):
                yield sets, rows, columns, False


def _ranges(start: int, stop: int, size: int) -> list[slice]:
    return [slice(low, min(low + size, stop)) for low in range(start, stop, size)]


def _tile_size(z: Tensor) -> int:
    """Return how many pairs are computed at once."""
    if z.device.type != "cuda":
        return CPU_TILE
    free, _ = torch.cuda.mem_get_info(z.device)
    return max(CPU_TILE, min(CUDA_TILE, free // (SHARE * z.element_size())))
