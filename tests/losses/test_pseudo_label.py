import math

import pytest
import torch

from nnunet_semicon.losses.pseudo_label import confident_prediction
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
