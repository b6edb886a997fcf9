import pytest
import torch

from nnunet_semicon.losses.pairs import OTHER, anchors_first, has_negatives, masks, pairs_by_label, positive_counts
from tests.losses import reference


@pytest.mark.parametrize("name", [*reference.LABEL_PATTERNS, *reference.DEGENERATE])
def test_masks_are_the_sets_of_the_equations(name):
    rows, bank = {**reference.LABEL_PATTERNS, **reference.DEGENERATE}[name]
    pairs = pairs_by_label(*reference.label_tensors(rows, bank))
    positive, candidate = masks(pairs)
    assert positive.shape == candidate.shape == (len(rows), len(rows) + len(bank or []))
    assert positive.dtype == candidate.dtype == torch.bool
    for i in range(len(rows)):
        assert candidate[i].nonzero().flatten().tolist() == reference.candidates_of(i, rows, bank)
        assert positive[i].nonzero().flatten().tolist() == reference.positives_of(i, rows, bank)
    assert positive_counts(pairs)[0].tolist() == positive.sum(dim=1).tolist()


def test_masks_written_out():
    positive, candidate = masks(pairs_by_label(*reference.label_tensors([5, -1, 5], [5, 6, -1])))
    assert candidate.int().tolist() == [[0, 0, 1, 1, 1, 0], [0] * 6, [1, 0, 0, 1, 1, 0]]
    assert positive.int().tolist() == [[0, 0, 1, 1, 0, 0], [0] * 6, [1, 0, 0, 1, 0, 0]]


def test_other_images_in_the_bank_are_negatives_only():
    positive, candidate = masks(pairs_by_label(torch.tensor([0, 1, 0]), torch.tensor([OTHER, OTHER, -1])))
    assert candidate[:, 3:].tolist() == [[True, True, False]] * 3
    assert not positive[:, 3:].any()


def test_an_empty_bank_is_no_bank():
    labels = torch.tensor([0, 1, 0])
    none, empty = pairs_by_label(labels, None), pairs_by_label(labels, labels[:0])
    assert torch.equal(none.labels, empty.labels)
    assert torch.equal(none.is_anchor, empty.is_anchor)


def test_sets_do_not_meet():
    pairs = pairs_by_label(torch.tensor([[0, 0, 1, 0], [1, 1, -1, 7]]))
    assert positive_counts(pairs).tolist() == [[2, 2, 0, 2], [1, 1, 0, 0]]


def test_anchors_come_first():
    labels = torch.tensor([[0, 1, -1, 1, 0], [0, 0, 2, 0, 0]])
    embeddings = torch.arange(10.0).view(2, 5, 1)
    moved, pairs = anchors_first(embeddings, labels, torch.tensor([[0, 1, 1, 1, 0], [0, 0, 1, 0, 0]]).bool())
    assert pairs.labels.tolist() == [[1, 1, 0, -1, 0], [2, 0, 0, 0, 0]]
    assert moved.squeeze(2).tolist() == [[1, 3, 0, 2, 4], [7, 5, 6, 8, 9]]
    assert pairs.is_anchor.tolist() == [[True, True], [True, False]]  # an unknown label is no anchor


def test_anchors_stay_where_some_set_has_nothing_else():
    labels = torch.tensor([[0, -1, 1], [2, 0, 0]])
    embeddings = torch.arange(6.0).view(2, 3, 1)
    moved, pairs = anchors_first(embeddings, labels, torch.ones(2, 3, dtype=torch.bool))
    assert moved is embeddings
    assert pairs.labels.tolist() == labels.tolist()
    assert pairs.is_anchor.tolist() == [[True, False, True], [True, True, True]]


@pytest.mark.parametrize(
    ("rows", "bank", "expected"),
    [
        ([0, 0, 1], None, True),
        ([0, 0], [1], True),
        ([0], [0, 1], True),
        ([0, 0, 0], None, False),  # positives only
        ([0, 1, 2], None, False),  # negatives, but nothing to draw together
        ([0, 0, -1], [-1], False),  # an unknown label is no negative
        ([-1, -1], [0, 1], False),
        ([0], None, False),
        ([], None, False),
    ],
)
def test_has_negatives(rows, bank, expected):
    result = has_negatives(pairs_by_label(*reference.label_tensors(rows, bank)))
    assert result.shape == ()
    assert result.dtype == torch.bool
    assert bool(result) is expected
