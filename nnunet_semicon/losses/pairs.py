"""Which embeddings form a pair, told by labels alone.

    A(i)   = all other known vectors of the set                      the denominator of the contrast
    P^k(i) = {j in A(i): label_k(j) = label_k(i)}                    the positives

(SP-Con, Peng et al., NeurIPS 2021, eq. 1; Khosla et al., NeurIPS 2020.)

Deviations: the papers know every label. Here a label can be unknown; the vector might then have any value, so it is
neither anchor, nor positive, nor candidate. The papers contrast within the batch only; here a bank of stored embeddings
may follow, which are candidates and no anchors.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

UNKNOWN = -1
OTHER = -2  # for the bank: a known label that no vector of the batch has


@dataclass(frozen=True)
class Pairs:
    """Labels of K sets of N vectors that do not meet; the first M vectors of each set may be anchors.

    Attributes:
        labels: (K, N) int64, -1 = unknown.
        is_anchor: (K, M) bool; False wherever the label is unknown.
    """

    labels: Tensor
    is_anchor: Tensor

    @property
    def n_anchors(self) -> int:
        """M."""
        return self.is_anchor.shape[1]

    @property
    def known(self) -> Tensor:
        """(K, N) bool: the vector takes part."""
        return self.labels != UNKNOWN


class Masks(NamedTuple):
    """All pairs of one set at once: for pictures of a few images, not for pixels.

    Attributes:
        positive: (M, N) bool, j in P(i); a subset of ``candidate``.
        candidate: (M, N) bool, a in A(i).
    """

    positive: Tensor
    candidate: Tensor


def pairs_by_label(labels: Tensor, bank_labels: Tensor | None = None) -> Pairs:
    """Pair every vector of known label with all others and with the bank; equal labels are positives.

    Args:
        labels: (M,) or (K, M) int64 labels of the anchors, -1 = unknown.
        bank_labels: (B,) or (K, B) int64 labels of the bank, -1 = unknown or an empty slot, -2 = differs from every
            anchor's; None: no bank.

    Returns:
        Pairs of N = M + B vectors: first the anchors, then the bank.
    """
    labels = torch.atleast_2d(labels)
    bank = labels[:, :0] if bank_labels is None else torch.atleast_2d(bank_labels)
    return Pairs(torch.cat([labels, bank], dim=1), labels != UNKNOWN)


def anchors_first(embeddings: Tensor, labels: Tensor, is_anchor: Tensor) -> tuple[Tensor, Pairs]:
    """Move the anchors of every set to its front, so that rows of other vectors are never computed.

    Args:
        embeddings: (K, N, D).
        labels: (K, N) int64, -1 = unknown.
        is_anchor: (K, N) bool; a vector of unknown label is no anchor in any case.

    Returns:
        The embeddings in their new order, and their pairs; in the old order where some set has nothing but anchors, as
        every row is then computed anyway. Waits for the device once, for the number of anchors.
    """
    is_anchor = is_anchor & (labels != UNKNOWN)
    n_anchors = int(is_anchor.sum(dim=1).max()) if labels.numel() else 0
    if n_anchors == labels.shape[1]:
        return embeddings, Pairs(labels, is_anchor)
    order = is_anchor.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    moved = embeddings.gather(1, order[..., None].expand_as(embeddings))
    return moved, Pairs(labels.gather(1, order), is_anchor.gather(1, order)[:, :n_anchors])


def class_slots(labels: Tensor) -> Tensor:
    """Number the classes of all sets: (K, N) labels to (K, N) in [0, K N), without waiting for the device."""
    ordered, order = labels.sort(dim=1)
    is_new = torch.ones_like(ordered)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    numbers = is_new.flatten().cumsum(0).sub_(1).view_as(labels)
    return torch.empty_like(labels).scatter_(1, order, numbers)


def positive_counts(pairs: Pairs) -> Tensor:
    """|P(i)| of every anchor, (K, M) int64; 0 for what is no anchor."""
    slots = class_slots(pairs.labels)
    sizes = torch.zeros_like(slots).flatten().index_add_(0, slots.flatten(), torch.ones_like(slots).flatten())
    return (sizes[slots[:, : pairs.n_anchors]] - 1) * pairs.is_anchor


def has_negatives(pairs: Pairs) -> Tensor:
    """Whether any anchor has both a positive and a negative: without that, nothing is contrasted.

    Returns:
        0-dim bool tensor; False also where there is no pair at all.
    """
    positives = positive_counts(pairs)
    negatives = pairs.known.sum(dim=1, keepdim=True) - 1 - positives
    return ((positives > 0) & (negatives > 0)).any()


def masks(pairs: Pairs) -> Masks:
    """Write out the pairs of a single set, K = 1."""
    labels, is_anchor = pairs.labels.squeeze(0), pairs.is_anchor.squeeze(0)
    itself = torch.eye(len(is_anchor), len(labels), dtype=torch.bool, device=labels.device)
    candidate = is_anchor[:, None] & pairs.known & ~itself
    return Masks(candidate & (labels[: len(is_anchor), None] == labels), candidate)
