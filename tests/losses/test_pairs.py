import pytest
import torch

from nnunet_semicon.losses.pairs import OTHER, has_negatives, pairs_by_label
from tests.losses import reference


@pytest.mark.parametrize("name", [*reference.LABEL_PATTERNS, *reference.DEGENERATE])
def test_masks_are_the_sets_of_the_equations(name):
    rows, bank = {**reference.LABEL_PATTERNS, **reference.DEGENERATE}[name]
    pairs = pairs_by_label(*reference.label_tensors(rows, bank))
    assert pairs.positive.shape == pairs.candidate.shape == (len(rows), len(rows) + len(bank or []))
    assert pairs.positive.dtype == pairs.candidate.dtype == torch.bool
    for i in range(len(rows)):
        assert pairs.candidate[i].nonzero().flatten().tolist() == reference.candidates_of(i, rows, bank)
        assert pairs.positive[i].nonzero().flatten().tolist() == reference.positives_of(i, rows, bank)


def test_masks_written_out():
    pairs = pairs_by_label(*reference.label_tensors([5, -1, 5], [5, 6, -1]))
    assert pairs.candidate.int().tolist() == [[0, 0, 1, 1, 1, 0], [0] * 6, [1, 0, 0, 1, 1, 0]]
    assert pairs.positive.int().tolist() == [[0, 0, 1, 1, 0, 0], [0] * 6, [1, 0, 0, 1, 0, 0]]


def test_other_images_in_the_bank_are_negatives_only():
    pairs = pairs_by_label(torch.tensor([0, 1, 0]), torch.tensor([OTHER, OTHER, -1]))
    assert pairs.candidate[:, 3:].tolist() == [[True, True, False]] * 3
    assert not pairs.positive[:, 3:].any()


def test_an_empty_bank_is_no_bank():
    labels = torch.tensor([0, 1, 0])
    none, empty = pairs_by_label(labels, None), pairs_by_label(labels, labels[:0])
    assert torch.equal(none.positive, empty.positive)
    assert torch.equal(none.candidate, empty.candidate)


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
