"""A first-in-first-out memory of detached embeddings with their labels."""

import torch
from torch import Tensor, nn


class EmbeddingQueue(nn.Module):
    """Ring buffer; it is part of the method's state, so that a resumed run goes on with the same negatives.

    Args:
        size: entries K; 0 makes it an empty bank.
        dim: D.
    """

    embeddings: Tensor
    labels: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(size, dim))
        self.register_buffer("labels", torch.full((size,), -1, dtype=torch.int64))  # -1: unknown, takes part in nothing
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, embeddings: Tensor, labels: Tensor) -> None:
        """Replace the oldest entries by (M, D) embeddings with (M,) labels."""
        size = len(self.labels)
        if size == 0:
            return
        embeddings, labels = embeddings[-size:], labels[-size:]
        slots = (self.pointer + torch.arange(len(labels), device=labels.device)) % size
        self.embeddings[slots] = embeddings.detach().to(self.embeddings.dtype)
        self.labels[slots] = labels
        self.pointer.copy_((self.pointer + len(labels)) % size)
