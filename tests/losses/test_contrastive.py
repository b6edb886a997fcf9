import math

import pytest
import torch
import torch.nn.functional as F

from nnunet_semicon.losses.contrastive import mean_over_anchors, pair_losses, supervised_contrast
from nnunet_semicon.losses.pairs import pairs_by_label
from nnunet_semicon.losses.precision import full_precision
from tests.losses import reference
from tests.losses.reference import DEGENERATE, GRADIENT_TOLERANCE, LABEL_PATTERNS, VALUE_TOLERANCE, embeddings

HALF = (torch.float16, torch.bfloat16)


def contrast(z, rows, bank, tau):
    """The loss of all embeddings z: the rows, then the bank."""
    return supervised_contrast(z, pairs_by_label(*reference.label_tensors(rows, bank)), tau)


def total(rows, bank):
    return len(rows) + len(bank or [])


def value_and_gradient(z, rows, bank, tau):
    z = z.clone().requires_grad_()
    loss = contrast(z, rows, bank, tau)
    loss.backward()
    return loss.detach(), z.grad


@pytest.mark.parametrize("tau", [0.005, 0.02, 0.05, 0.07, 0.5, 2.0])
@pytest.mark.parametrize("dim", [2, 7, 32])
@pytest.mark.parametrize("name", LABEL_PATTERNS)
def test_equals_the_loops(name, dim, tau):
    rows, bank = LABEL_PATTERNS[name]
    z = embeddings(total(rows, bank), dim, seed=dim)
    expected = reference.supervised_contrast(z, rows, bank, tau)
    assert expected > 0.01
    for dtype in (torch.float64, torch.float32):
        loss = contrast(z.to(dtype), rows, bank, tau)
        assert loss.dtype == dtype
        assert loss.shape == ()
        assert loss.item() == pytest.approx(expected, rel=VALUE_TOLERANCE[dtype], abs=VALUE_TOLERANCE[dtype])


@pytest.mark.parametrize("tau", [0.07, 0.5])
def test_pair_losses_equal_the_loops_and_stay_within_their_bound(tau):
    rows, bank = LABEL_PATTERNS["bank with empty slots"]
    z = embeddings(total(rows, bank), 3)
    losses = pair_losses(z, pairs_by_label(*reference.label_tensors(rows, bank)), tau)
    for i in range(len(rows)):
        others = reference.candidates_of(i, rows, bank)
        for j in range(len(z)):
            expected = reference.pair_loss(z.tolist(), i, j, others, tau) if j in others else 0.0
            assert losses[i, j].item() == pytest.approx(expected, abs=1e-10)
            assert 0 <= losses[i, j] <= math.log(max(len(others), 1)) + 2 / tau


@pytest.mark.parametrize(("rows", "bank"), [([0, 0, 1, 1], None), ([0, 0, 1], [1, 0, 2, 2]), ([0] * 5, None)])
@pytest.mark.parametrize("tau", [0.07, 1.0])
def test_identical_embeddings_give_the_log_of_the_number_of_candidates(rows, bank, tau):
    z = torch.ones(total(rows, bank), 6, dtype=torch.float64)
    assert contrast(z, rows, bank, tau).item() == pytest.approx(math.log(total(rows, bank) - 1), abs=1e-12)


def test_one_positive_each_is_cross_entropy():
    rows, tau = [0, 0, 1, 1, 2, 2], 0.3
    z = embeddings(6, 5)
    logits = (F.normalize(z) @ F.normalize(z).T / tau).fill_diagonal_(-torch.inf)
    expected = F.cross_entropy(logits, torch.tensor([1, 0, 3, 2, 5, 4]))
    assert contrast(z, rows, None, tau).item() == pytest.approx(expected.item(), abs=1e-12)


def test_mean_over_anchors_weighs_sets_equally():
    values = torch.tensor([[1.0, 3.0, 8.0], [7.0, 100.0, -math.inf], [math.inf, 100.0, math.nan]])
    is_anchor = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    assert mean_over_anchors(values, is_anchor).item() == pytest.approx(((1 + 3 + 8) / 3 + 7) / 2)


@pytest.mark.parametrize("name", LABEL_PATTERNS)
def test_order_of_rows_and_of_the_bank_does_not_matter(name):
    rows, bank = LABEL_PATTERNS[name]
    z = embeddings(total(rows, bank), 8)
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(len(rows), generator=generator).tolist()
    bank_order = torch.randperm(len(bank or []), generator=generator).tolist()
    shuffled = z[order + [len(rows) + k for k in bank_order]]
    labels = [rows[i] for i in order], [bank[k] for k in bank_order] if bank else None
    assert order != sorted(order)
    assert contrast(shuffled, *labels, 0.2).item() == pytest.approx(contrast(z, rows, bank, 0.2).item(), abs=1e-12)


def test_length_of_an_embedding_does_not_matter():
    rows, bank = LABEL_PATTERNS["bank"]
    z = embeddings(total(rows, bank), 8)
    lengths = torch.logspace(-3, 3, len(z), dtype=z.dtype)[:, None]
    assert contrast(lengths * z, rows, bank, 0.07).item() == pytest.approx(contrast(z, rows, bank, 0.07).item())


def test_unknown_rows_change_nothing():
    rows, bank = [0, -1, 1, 0], [1, -1, 2]
    z = embeddings(7, 4)
    loss, gradient = value_and_gradient(z, rows, bank, 0.1)
    known = [0, 2, 3, 4, 6]
    assert contrast(z[known], [0, 1, 0], [1, 2], 0.1).item() == pytest.approx(loss.item(), abs=1e-12)
    assert gradient[[1, 5]].abs().max() == 0
    assert gradient[known].abs().min(dim=0).values.max() > 0


def at_angles(*degrees):
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_attraction_and_repulsion_have_the_right_sign():
    rows = [0, 0, 1]
    far, near = at_angles(0, 40, 180), at_angles(0, 20, 180)
    assert contrast(near, rows, None, 0.5) < contrast(far, rows, None, 0.5)
    crowded = at_angles(0, 40, -60)
    assert contrast(crowded, rows, None, 0.5) > contrast(far, rows, None, 0.5)
    _, gradient = value_and_gradient(far, rows, None, 0.5)
    step = far - 0.01 * gradient
    assert reference.cosine(step[0].tolist(), step[1].tolist()) > math.cos(math.radians(40))


@pytest.mark.parametrize("name", ["unknown rows", "bank with empty slots"])
def test_gradcheck(name):
    rows, bank = LABEL_PATTERNS[name]
    z = embeddings(total(rows, bank), 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: contrast(z, rows, bank, 0.3), z)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_batches_give_a_finite_connected_loss(name, dtype):
    rows, bank = DEGENERATE[name]
    z = embeddings(total(rows, bank), 4, dtype=dtype)
    with torch.autograd.set_detect_anomaly(True):  # no NaN inside either
        loss, gradient = value_and_gradient(z, rows, bank, 0.07)  # backward() fails where the graph is cut
    assert loss.item() == pytest.approx(reference.supervised_contrast(z, rows, bank, 0.07), abs=1e-5)
    assert gradient.isfinite().all()
    if not any(reference.positives_of(i, rows, bank) for i in range(len(rows))):
        assert loss == 0
        assert (gradient == 0).all()


def test_a_zero_embedding_is_finite():
    z = embeddings(4, 4, dtype=torch.float32)
    z[1] = 0
    loss, gradient = value_and_gradient(z, [0, 0, 1, 1], None, 0.07)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("tau", [0.05, 0.07])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF])
@pytest.mark.parametrize("autocast", [False, True])
def test_precision(dtype, tau, autocast):
    rows, bank = [0, 0, 1, 1, 2, 2, -1], [0, 1, 2, 3, -1]
    z = embeddings(total(rows, bank), 32, dtype=dtype)
    z[1] = -z[0]  # the worst pair: l_ij near its bound of 2 / tau
    expected, expected_gradient = value_and_gradient(z.double(), rows, bank, tau)
    assert expected.item() == pytest.approx(reference.supervised_contrast(z, rows, bank, tau))

    z = z.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = contrast(z, rows, bank, tau)
    loss.backward()
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert z.grad.dtype == dtype
    assert loss.item() == pytest.approx(expected.item(), rel=VALUE_TOLERANCE[dtype])
    scale = expected_gradient.abs().max()
    assert (z.grad.double() - expected_gradient).abs().max() <= GRADIENT_TOLERANCE[dtype] * scale


def test_full_precision_reaches_only_its_block_and_any_device():
    a = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with full_precision(a.device):
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16
    with full_precision(torch.device("meta")):  # a device type without autocast
        assert (a @ a).dtype == torch.float32


@pytest.mark.parametrize("tau", [0.0, -0.1, 0.004, math.nan])
def test_refuses_a_temperature_that_overflows(tau):
    with pytest.raises(ValueError, match=r"temperature must be at least 0.005"):
        contrast(embeddings(2, 3), [0, 0], None, tau)


def test_refuses_labels_that_do_not_fit():
    with pytest.raises(ValueError, match=r"got \(1, 2\) labels and embeddings of shape \(3, 4\)"):
        supervised_contrast(embeddings(3, 4), pairs_by_label(torch.tensor([0, 0])), 0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_cuda_under_autocast(dtype):
    rows, bank = LABEL_PATTERNS["bank with empty slots"]
    z = embeddings(total(rows, bank), 32, dtype=dtype)
    labels, bank_labels = reference.label_tensors(rows, bank)
    pairs = pairs_by_label(labels.cuda(), bank_labels.cuda())
    device = z.cuda().requires_grad_()
    with torch.autocast("cuda", dtype=torch.float16):
        loss = supervised_contrast(device, pairs, 0.07)
    loss.backward()
    expected, expected_gradient = value_and_gradient(z.double(), rows, bank, 0.07)
    assert loss.item() == pytest.approx(expected.item(), rel=VALUE_TOLERANCE[dtype])
    error = (device.grad.cpu().double() - expected_gradient).abs().max()
    assert error <= GRADIENT_TOLERANCE[dtype] * expected_gradient.abs().max()
