"""Which embeddings form a pair: label equality turned into boolean masks.

    A(i)   = all other rows and the bank                    ``candidate[i]``, the denominator of the contrast
    P^k(i) = {j in A(i): label_k(j) = label_k(i)}           ``positive[i]``

(SP-Con, Peng et al., NeurIPS 2021, eq. 1; Khosla et al., NeurIPS 2020.) A row is excluded from its own pairs here and
nowhere else.

Deviations: the papers know every label. Here a label can be unknown; the row might then have any value, so it is
neither anchor, nor positive, nor candidate. The papers contrast within the batch only; here a bank of stored embeddings
may follow.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

UNKNOWN = -1
OTHER = -2  # for the bank: a known label that no row of the batch has


@dataclass(frozen=True)
class Pairs:
    """Masks over M anchors and A candidates.

    Attributes:
        positive: (M, A) bool, j in P(i); a subset of ``candidate``.
        candidate: (M, A) bool, a in A(i).
    """

    positive: Tensor
    candidate: Tensor


def pairs_by_label(labels: Tensor, bank_labels: Tensor | None) -> Pairs:
    """Pair every row with the other rows and the bank; equal labels are positives.

    Args:
        labels: (M,) int64 labels of the anchors, -1 = unknown.
        bank_labels: (K,) int64 labels of the bank, -1 = unknown or an empty slot, -2 = differs from every row's;
            None: no bank.

    Returns:
        Masks with A = M + K: first the M rows themselves, then the K bank rows. The rows and columns of unknown labels
        are all False, and so is the diagonal of the first M columns.
    """
    if bank_labels is None:
        bank_labels = labels.new_empty(0)
    candidate_labels = torch.cat([labels, bank_labels])
    known = (labels != UNKNOWN)[:, None] & (candidate_labels != UNKNOWN)[None, :]
    itself = torch.eye(len(labels), len(candidate_labels), dtype=torch.bool, device=labels.device)
    candidate = known & ~itself
    return Pairs(positive=candidate & (labels[:, None] == candidate_labels[None, :]), candidate=candidate)


def has_negatives(pairs: Pairs) -> Tensor:
    """Whether any anchor has both a positive and a negative: without that, nothing is contrasted.

    Returns:
        0-dim bool tensor; False also where there is no pair at all.
    """
    negative = pairs.candidate & ~pairs.positive
    return (pairs.positive.any(dim=1) & negative.any(dim=1)).any()
