"""Two networks exchange their weights for a while: student and teacher during a validation."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn


@contextmanager
def exchanged(first: nn.Module, second: nn.Module) -> Iterator[None]:
    """Let two modules have each other's values inside a ``with`` block, and their own after it, also after an error.

    Values are copied in place: optimizers, DDP and a compiled network keep their parameters.

    Args:
        first: neither compiled nor wrapped.
        second: a module with parameters and buffers of the same shapes, in the same order.
    """
    _exchange(first, second)
    try:
        yield
    finally:
        _exchange(first, second)


@torch.no_grad()
def _exchange(first: nn.Module, second: nn.Module) -> None:
    pairs = chain(
        zip(first.parameters(), second.parameters(), strict=True),
        zip(first.buffers(), second.buffers(), strict=True),
    )
    for one, other in pairs:
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)
