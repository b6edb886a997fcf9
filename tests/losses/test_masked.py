"""Weighted Dice and cross-entropy: the formula pixel by pixel, and nnU-Net's own classes where every weight is 1."""

import math
from itertools import product

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from nnunet_semicon.losses.masked import weighted_dice_ce
from tests.losses.reference import GRADIENT_TOLERANCE, VALUE_TOLERANCE

CHANNELS = 3
IGNORE = CHANNELS  # the label after the last class
SHAPES = [(2, 5, 4), (2, 3, 4, 2), (1, 1, 1)]  # rows, then pixels
KINDS = [
    pytest.param(has_regions, ignore, id=f"{'regions' if has_regions else 'softmax'}{'-ignore' if ignore else ''}")
    for has_regions, ignore in product([False, True], [False, True])
]
kinds = pytest.mark.parametrize(("has_regions", "ignore"), KINDS)
dices = pytest.mark.parametrize(("batch_dice", "do_bg"), list(product([False, True], [False, True])))


def batch(shape, has_regions, ignore, seed=0, dtype=torch.float64):
    """Logits, target and weight; a quarter of the pixels is ignored, or more."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape[0], CHANNELS, *shape[1:], generator=generator, dtype=torch.float64)
    weight = torch.rand(shape, generator=generator, dtype=torch.float64)
    channels = CHANNELS + ignore if has_regions else 1
    highest = 2 if has_regions else CHANNELS + ignore
    target = torch.randint(0, highest, (shape[0], channels, *shape[1:]), generator=generator)
    return logits.to(dtype).requires_grad_(), target.bool() if has_regions else target.to(torch.int16), weight


def loss_of(logits, target, weight, has_regions, ignore, batch_dice=True, do_bg=False, **how):
    label = IGNORE if ignore else None
    how = {"smooth": 1e-5, "batch_dice": batch_dice, "do_bg": do_bg, **how}
    return weighted_dice_ce(logits, target, weight, has_regions=has_regions, ignore_label=label, **how)


def nnunets(has_regions, ignore, batch_dice, do_bg, smooth=1e-5, weight_ce=1.0, weight_dice=1.0):
    dice = {"batch_dice": batch_dice, "do_bg": do_bg, "smooth": smooth, "ddp": False}
    weights = {"weight_ce": weight_ce, "weight_dice": weight_dice, "dice_class": MemoryEfficientSoftDiceLoss}
    if has_regions:
        return DC_and_BCE_loss({}, dice, use_ignore_label=ignore, **weights)
    return DC_and_CE_loss(dice, {}, ignore_label=IGNORE if ignore else None, **weights)


def naive(logits, target, weight, has_regions, ignore, batch_dice, do_bg, smooth, weight_ce, weight_dice):
    """The formula as loops over Python floats."""
    rows, pixels = len(logits), math.prod(logits.shape[2:])
    z, t, w = (tensor.detach().double().reshape(rows, -1, pixels).tolist() for tensor in (logits, target, weight))
    cross_entropy, valid = 0.0, 0
    sums = [[[0.0] * 2 for _ in range(CHANNELS)] for _ in range(rows)]
    for b, i in product(range(rows), range(pixels)):
        scores = [z[b][k][i] for k in range(CHANNELS)]
        if has_regions:
            ignored = ignore and t[b][CHANNELS][i] == 1
            y = [t[b][k][i] for k in range(CHANNELS)]
            p = [1 / (1 + math.exp(-score)) for score in scores]
            pixel = -sum(math.log(q if yes else 1 - q) for q, yes in zip(p, y, strict=True))
            pixel /= 1 if ignore else CHANNELS
        else:
            ignored = ignore and t[b][0][i] == IGNORE
            y = [float(t[b][0][i] == k) for k in range(CHANNELS)]
            p = [math.exp(score) / sum(map(math.exp, scores)) for score in scores]
            pixel = 0.0 if ignored else -math.log(p[y.index(1.0)])
        if ignored:
            continue
        valid += 1
        cross_entropy += w[b][0][i] * pixel
        for k in range(CHANNELS):
            sums[b][k][0] += w[b][0][i] * p[k] * y[k]
            sums[b][k][1] += w[b][0][i] * (p[k] + y[k])
    if batch_dice:
        sums = [[[sum(row[k][part] for row in sums) for part in range(2)] for k in range(CHANNELS)]]
    dices = [(2 * c[0] + smooth) / max(c[1] + smooth, 1e-8) for row in sums for c in row[0 if do_bg else 1 :]]
    return weight_ce * cross_entropy / max(1, valid) - weight_dice * sum(dices) / len(dices)


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


@kinds
@dices
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_formula_pixel_by_pixel(shape, has_regions, ignore, batch_dice, do_bg):
    how = {"smooth": 0.3, "weight_ce": 0.7, "weight_dice": 1.9, "batch_dice": batch_dice, "do_bg": do_bg}
    logits, target, weight = batch(shape, has_regions, ignore)
    loss = loss_of(logits, target, weight, has_regions, ignore, **how)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(naive(logits, target, weight, has_regions, ignore, **how), abs=1e-12)


@kinds
@dices
@pytest.mark.parametrize("parts", [{}, {"weight_dice": 0}, {"weight_ce": 0}, {"smooth": 1.0}], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_nnunets_value_and_gradient_where_every_weight_is_one(
    shape, has_regions, ignore, batch_dice, do_bg, parts
):
    logits, target, weight = batch(shape, has_regions, ignore, dtype=torch.float32)
    stock = nnunets(has_regions, ignore, batch_dice, do_bg, **parts)(logits, target)
    ours = loss_of(logits, target, torch.ones_like(weight), has_regions, ignore, batch_dice, do_bg, **parts)
    torch.testing.assert_close(ours, torch.as_tensor(stock), rtol=1e-5, atol=1e-6)
    if stock.requires_grad:  # not where nnU-Net leaves out the cross-entropy of ignored pixels alone
        torch.testing.assert_close(gradient(ours, logits), gradient(stock, logits), rtol=1e-4, atol=1e-7)


@kinds
def test_a_weight_of_zero_is_an_ignored_pixel_but_for_the_divisor(has_regions, ignore):
    logits, target, weight = batch((2, 6, 5), has_regions, ignore)
    weight = (weight > 0.5).double()
    left_out = target.clone()
    if has_regions:
        channel = (weight == 0)[:, None] | (target[:, -1:] if ignore else torch.zeros(2, 1, 6, 5, dtype=torch.bool))
        left_out = torch.cat([target[:, :CHANNELS], channel], dim=1)
    else:
        left_out[weight[:, None] == 0] = IGNORE
    ours = loss_of(logits, target, weight, has_regions, ignore, weight_ce=0)
    stock = loss_of(logits, left_out, torch.ones_like(weight), has_regions, True, weight_ce=0)
    torch.testing.assert_close(ours, stock)


@kinds
@dices
@pytest.mark.parametrize("smooth", [1e-5, 0.0])
def test_without_any_weight_no_gradient_flows(has_regions, ignore, batch_dice, do_bg, smooth):
    logits, target, weight = batch((2, 5, 4), has_regions, ignore)
    loss = loss_of(logits, target, torch.zeros_like(weight), has_regions, ignore, batch_dice, do_bg, smooth=smooth)
    assert loss.isfinite()
    assert not gradient(loss, logits).any()


@pytest.mark.parametrize("has_regions", [False, True])
@dices
@pytest.mark.parametrize("smooth", [1e-5, 0.0])
def test_where_all_pixels_are_ignored_no_gradient_flows(has_regions, batch_dice, do_bg, smooth):
    logits, target, weight = batch((2, 5, 4), has_regions, True)
    target = torch.ones_like(target) if has_regions else torch.full_like(target, IGNORE)
    loss = loss_of(logits, target, weight, has_regions, True, batch_dice, do_bg, smooth=smooth)
    assert loss.isfinite()
    assert not gradient(loss, logits).any()


@kinds
@dices
def test_empty_foreground(has_regions, ignore, batch_dice, do_bg):
    how = {"smooth": 1e-5, "weight_ce": 1.0, "weight_dice": 1.0, "batch_dice": batch_dice, "do_bg": do_bg}
    logits, target, weight = batch((2, 5, 4), has_regions, ignore)
    target = torch.zeros_like(target)
    loss = loss_of(logits, target, weight, has_regions, ignore, **how)
    assert loss.item() == pytest.approx(naive(logits, target, weight, has_regions, ignore, **how), abs=1e-12)
    assert gradient(loss, logits).isfinite().all()


@kinds
def test_no_rows(has_regions, ignore):
    logits, target, weight = batch((0, 5, 4), has_regions, ignore)
    for batch_dice in (False, True):
        assert loss_of(logits, target, weight, has_regions, ignore, batch_dice).isfinite()


@kinds
@dices
def test_gradcheck(has_regions, ignore, batch_dice, do_bg):
    logits, target, weight = batch((2, 3, 2), has_regions, ignore)
    assert torch.autograd.gradcheck(
        lambda z: loss_of(z, target, weight, has_regions, ignore, batch_dice, do_bg, smooth=0.1), logits
    )


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_computed_in_float32(has_regions, ignore, dtype, autocast):
    logits, target, weight = batch((2, 70, 70), has_regions, ignore, dtype=dtype)  # float16 does not count to 9800
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = loss_of(logits, target, weight.to(dtype), has_regions, ignore)
    exact = logits.detach().double().requires_grad_()
    expected = loss_of(exact, target, weight.to(dtype).double(), has_regions, ignore)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), abs=VALUE_TOLERANCE[dtype])
    true = gradient(expected, exact)
    largest = true.abs().max()
    torch.testing.assert_close(
        gradient(loss, logits).double() / largest,
        true / largest,
        rtol=GRADIENT_TOLERANCE[dtype],
        atol=GRADIENT_TOLERANCE[dtype],
    )


def test_a_mask_is_a_weight():
    logits, target, weight = batch((2, 5, 4), False, False)
    mask = weight > 0.5
    torch.testing.assert_close(
        loss_of(logits, target, mask, False, False), loss_of(logits, target, mask.double(), False, False)
    )


@kinds
def test_sums_of_all_processes_give_the_dice_of_one(has_regions, ignore):
    logits, target, weight = batch((4, 5, 4), has_regions, ignore)
    kept = []

    def keep(sums):
        kept.append(sums.detach())
        return sums[None]

    halves = [slice(0, 1), slice(1, 4)]  # processes may have different rows
    for rows in halves:
        loss_of(logits[rows], target[rows], weight[rows], has_regions, ignore, weight_ce=0, gather_sums=keep)
    both = torch.stack(kept)
    together = loss_of(logits, target, weight, has_regions, ignore, weight_ce=0)
    for rows in halves:
        part = loss_of(
            logits[rows], target[rows], weight[rows], has_regions, ignore, weight_ce=0, gather_sums=lambda _: both
        )
        torch.testing.assert_close(part, together)
