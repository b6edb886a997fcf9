"""Learning from the hard prediction of another network, against loops."""

import math

import pytest
import torch

from nnunet_semicon.losses.cross_supervision import SMOOTH, cross_dice, cross_entropy, hard_prediction
from tests.losses import reference
from tests.losses.reference import VALUE_TOLERANCE

SHAPES = [(2, 3, 5), (2, 4, 5, 3), (1, 2, 3, 4, 2)]
LOSSES = [cross_dice, cross_entropy]
with_and_without_regions = pytest.mark.parametrize("has_regions", [False, True])


def logits(*shape, seed=0, dtype=torch.float64):
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def pixels_of(maps):
    """(B, C, *S) as one list of C numbers per pixel."""
    return maps.double().movedim(1, -1).flatten(0, -2).tolist()


def predicted(values, has_regions):
    if has_regions:
        return [float(value > 0) for value in values]
    return [float(c == max(range(len(values)), key=values.__getitem__)) for c in range(len(values))]


def looped(function, own, other, has_regions):
    probabilities = reference.sigmoid if has_regions else reference.softmax
    p = [probabilities(values) for values in pixels_of(own)]
    y = [predicted(values, has_regions) for values in pixels_of(other)]
    classes = range(own.shape[1])
    if function is cross_dice:
        total = 0.0
        for c in classes:
            shared = sum(p_i[c] * y_i[c] for p_i, y_i in zip(p, y, strict=True))
            size = sum(p_i[c] ** 2 for p_i in p) + sum(y_i[c] for y_i in y)
            total += 1 - (2 * shared + SMOOTH) / (size + SMOOTH)
        return total / len(classes)
    total = 0.0
    for p_i, y_i in zip(p, y, strict=True):
        for c in classes:
            total -= y_i[c] * math.log(p_i[c]) + (has_regions and (1 - y_i[c]) * math.log(1 - p_i[c]))
    return total / len(p)


@pytest.mark.parametrize("function", LOSSES)
@with_and_without_regions
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", VALUE_TOLERANCE)
def test_equals_the_loops(function, has_regions, shape, dtype):
    own, other = logits(*shape, dtype=dtype), logits(*shape, seed=1, dtype=dtype)
    loss = function(own, other, has_regions)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    expected = looped(function, own, other, has_regions)
    assert loss.item() == pytest.approx(expected, rel=VALUE_TOLERANCE[dtype], abs=VALUE_TOLERANCE[dtype])


@pytest.mark.parametrize("function", LOSSES)
@with_and_without_regions
def test_only_the_network_that_learns_has_a_gradient(function, has_regions):
    own, other = logits(2, 3, 4, 4).requires_grad_(), logits(2, 3, 4, 4, seed=1).requires_grad_()
    function(own, other, has_regions).backward()
    assert other.grad is None
    assert function(own.detach() - own.grad, other, has_regions) < function(own, other, has_regions)
    assert torch.autograd.gradcheck(lambda x: function(x, other.detach(), has_regions), own)


@pytest.mark.parametrize("function", LOSSES)
@with_and_without_regions
def test_agreement_costs_nothing_and_certainty_of_the_opposite_much(function, has_regions):
    own = torch.where(hard_prediction(logits(2, 3, 4, 4), has_regions), 60.0, -60.0)
    assert function(own, own, has_regions).item() == pytest.approx(0, abs=1e-5)
    assert function(own, own.roll(1, 1), has_regions) > 0.3


@pytest.mark.parametrize("function", LOSSES)
@with_and_without_regions
def test_an_empty_batch_is_a_connected_zero(function, has_regions):
    own = torch.zeros(0, 3, 4, 4, requires_grad=True)
    loss = function(own, own.detach(), has_regions)
    loss.backward()
    assert loss.item() == 0
    assert own.grad is not None


@pytest.mark.parametrize("function", LOSSES)
def test_other_shapes_are_refused(function):
    with pytest.raises(ValueError, match="same shape"):
        function(logits(2, 3, 4, 4), logits(2, 3, 4, 1), False)


def test_every_pixel_is_of_one_class_or_of_any_regions():
    maps = logits(2, 3, 4, 4)
    classes = hard_prediction(maps, False)
    assert torch.equal(classes.sum(dim=1), torch.ones(2, 4, 4, dtype=torch.int64))
    assert torch.equal(classes.int().argmax(dim=1), maps.argmax(dim=1))
    assert torch.equal(hard_prediction(maps, True), torch.sigmoid(maps) > 0.5)
