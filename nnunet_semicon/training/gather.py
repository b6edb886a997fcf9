"""Rows of all ranks on every rank, with the gradient that one process would compute."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class RankGather:
    """Concatenates the rows of all ranks, in the order of the ranks.

    Every rank then computes the same loss over all rows. Its gradient reaches each rank's own rows only, times the
    number of ranks: the trainer averages gradients over ranks, and the average has to be the sum of what the rows give.

    Args:
        counts: rows of each rank; they may differ.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = tuple(counts)

    def __call__(self, rows: Tensor) -> Tensor:
        """Map this rank's (B, ...) to (sum of counts, ...)."""
        gathered: Tensor = _Gather.apply(rows, self.counts)
        return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
        ctx.counts = counts
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))  # all_gather wants equal shapes
        padded[: len(rows)] = rows
        received = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(received, padded)
        return torch.cat([part[:count] for part, count in zip(received, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        rank = dist.get_rank()
        first = sum(ctx.counts[:rank])
        return gradient[first : first + ctx.counts[rank]] * len(ctx.counts), None


def only_rank(rows: Tensor) -> Tensor:
    """What a training in one process gathers: its own rows."""
    return rows
