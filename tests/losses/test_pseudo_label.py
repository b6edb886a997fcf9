import math

import pytest
import torch

from nnunet_semicon.losses.pseudo_label import confident_prediction, counting, kept_shares
from tests.losses import reference


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_classes_equal_the_loop(dtype):
    logits = (3 * torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))).to(dtype)
    classes, confident = confident_prediction(logits, 0.8, has_regions=False)
    assert classes.shape == (2, 1, 4, 5)
    assert {True, False} == set(confident.flatten().tolist())
    for b, y, x in torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(5)).tolist():
        p = reference.softmax(logits[b, :, y, x].double().tolist())
        assert p[classes[b, 0, y, x]] == max(p)
        assert bool(confident[b, y, x]) == (max(p) >= 0.8)


def test_regions_are_confident_only_together():
    logits = torch.tensor([[2.0, -3.0], [0.5, 3.0]]).T[None, :, :, None]  # (1, 2 regions, 2 pixels, 1)
    regions, confident = confident_prediction(logits, 0.8, has_regions=True)
    assert regions[0, :, :, 0].tolist() == [[True, True], [False, True]]
    assert confident[0, :, 0].tolist() == [True, False]  # sigmoid(0.5) = 0.62
    assert 1 / (1 + math.exp(-0.5)) < 0.8


def test_no_gradient_and_an_empty_batch():
    classes, confident = confident_prediction(torch.zeros(0, 3, 4, 4, requires_grad=True), 0.5, has_regions=False)
    assert classes.shape == (0, 1, 4, 4)
    assert confident.shape == (0, 4, 4)
    prediction, _ = confident_prediction(torch.randn(1, 3, 2, 2, requires_grad=True), 0.5, has_regions=True)
    assert not prediction.requires_grad


def test_every_class_keeps_its_most_probable_pseudo_labels():
    probability = torch.tensor([[0.99, 0.9, 0.85, 0.5, 0.6, 0.7, 0.3]])
    classes = torch.tensor([[0, 0, 0, 1, 1, 1, 2]])
    assert counting(probability, classes, 0.8).tolist() == [[True, True, True, False, False, False, False]]
    assert counting(probability, classes, 0.8, min_kept=0.3).tolist() == [[True, True, True, False, False, True, True]]
    assert counting(probability, classes, 0.8, min_kept=1.0).all()


@pytest.mark.parametrize("min_kept", [0.1, 0.25, 0.5, 0.9])
def test_kept_part_of_each_class_is_at_least_the_asked_one(min_kept):
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(2, 9, 11, generator=generator)
    classes = torch.randint(0, 4, (2, 9, 11), generator=generator)
    counts = counting(probability, classes, 0.95, min_kept)
    for number in range(4):
        own = classes == number
        kept = int((counts & own).sum())
        at_least = math.ceil(min_kept * int(own.sum()))
        assert kept == max(at_least, int((own & (probability >= 0.95)).sum()))
        assert probability[own & counts].min() >= probability[own & ~counts].max()


def test_kept_shares_of_classes_and_regions():
    predicted = torch.tensor([[[0, 0, 1, 1, 1]]])
    counts = torch.tensor([[True, False, True, True, False]])
    torch.testing.assert_close(kept_shares(counts, predicted, 3, False), torch.tensor([1 / 2, 2 / 3, 0.0]))
    regions = torch.tensor([[[True, True, False, False, False], [False] * 5]])
    torch.testing.assert_close(kept_shares(counts, regions, 2, True), torch.tensor([1 / 2, 0.0]))
