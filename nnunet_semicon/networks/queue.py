"""First-in-first-out memories of detached embeddings with their labels."""

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


class ClassQueues(nn.Module):
    """One ring buffer per class, so that a frequent class does not push a rare one out.

    Args:
        n_classes: K.
        size: entries of each class; 0 makes it an empty bank.
        dim: D.
    """

    embeddings: Tensor
    is_filled: Tensor
    pointers: Tensor

    def __init__(self, n_classes: int, size: int, dim: int) -> None:
        super().__init__()
        # the last entry of each class is a bin for what is not kept
        self.register_buffer("embeddings", torch.zeros(n_classes, size + 1, dim))
        self.register_buffer("is_filled", torch.zeros(n_classes, size + 1, dtype=torch.bool))
        self.register_buffer("pointers", torch.zeros(n_classes, dtype=torch.int64))

    @property
    def size(self) -> int:
        """Entries of each class."""
        return self.embeddings.shape[1] - 1

    @property
    def bank(self) -> tuple[Tensor, Tensor]:
        """(K size, D) embeddings and (K size,) classes, -1 where nothing is stored yet."""
        classes = torch.arange(len(self.pointers), device=self.pointers.device)[:, None]
        labels = torch.where(self.is_filled, classes, -1)
        return self.embeddings[:, :-1].flatten(0, 1), labels[:, :-1].flatten()

    @torch.no_grad()
    def push(self, embeddings: Tensor, classes: Tensor) -> None:
        """Replace the oldest entries of each class, without waiting for the device.

        Args:
            embeddings: (M, D).
            classes: (M,) int64, -1: not to be kept.
        """
        if self.size == 0:
            return
        is_of = classes[:, None] == torch.arange(len(self.pointers), device=classes.device)  # (M, K)
        own = classes.clamp_min(0)
        counts = is_of.sum(dim=0)
        order = (is_of.cumsum(dim=0) - 1).gather(1, own[:, None])[:, 0]
        keep = (classes >= 0) & (order >= counts[own] - self.size)  # more than fit: the last ones
        slots = torch.where(keep, (self.pointers[own] + order) % self.size, self.size)
        self.embeddings[own, slots] = embeddings.detach().to(self.embeddings.dtype)
        self.is_filled[own, slots] = True
        self.pointers.copy_((self.pointers + counts) % self.size)
