import math
from functools import partial

import pytest
import torch

from nnunet_semicon.losses.contrastive import pair_losses, supervised_contrast
from nnunet_semicon.losses.pairs import masks, pairs_by_label
from nnunet_semicon.losses.self_paced import (
    self_paced_contrast,
    self_paced_contrasts,
    self_paced_weights,
    weight_quartiles,
)
from nnunet_semicon.losses.streaming import regularizer
from tests.losses import reference
from tests.losses.reference import DEGENERATE, GRADIENT_TOLERANCE, LABEL_PATTERNS, VALUE_TOLERANCE, embeddings

MODES = ("hard", "linear")
TAU = 0.3


def total(rows, bank):
    return len(rows) + len(bank or [])


def pairs_of(rows, bank):
    return pairs_by_label(*reference.label_tensors(rows, bank))


def contrast(z, rows, bank, gamma, mode, tau=TAU):
    return self_paced_contrast(z, pairs_of(rows, bank), tau, gamma, mode)


def gap_gamma(z, rows, bank, tau=TAU):
    """A gamma in the widest gap between the middle losses of positive pairs, far from any of them."""
    pairs = pairs_of(rows, bank)
    losses = pair_losses(z, pairs, tau)[masks(pairs).positive].detach().sort().values
    quarter = len(losses) // 4
    middle = losses[quarter : len(losses) - quarter]
    k = middle.diff().argmax()
    assert middle[k + 1] - middle[k] > 1e-2
    return ((middle[k] + middle[k + 1]) / 2).item()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("gamma", [0.3, 2.0, 7.5, 50.0])
def test_weights_minimize_the_objective(mode, gamma):
    losses = torch.tensor([0.0, 0.1, 0.29, 0.31, 1.0, 1.99, 2.01, 5.0, 7.4, 30.0, 60.0], dtype=torch.float64)
    grid = torch.linspace(0, 1, 10001, dtype=torch.float64)
    weights = self_paced_weights(losses, gamma, mode)
    for l_ij, w in zip(losses.tolist(), weights.tolist(), strict=True):
        objective = [v * l_ij + reference.regularizer(v, gamma, mode) for v in grid.tolist()]
        assert abs(w - grid[objective.index(min(objective))].item()) <= 1e-4
        assert w * l_ij + reference.regularizer(w, gamma, mode) <= min(objective) + 1e-12
        assert w == pytest.approx(reference.weight(l_ij, gamma, mode))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 50.0])
def test_regularizer_equals_the_equation(mode, gamma):
    weights = torch.linspace(0, 1, 11, dtype=torch.float64)
    expected = [reference.regularizer(w, gamma, mode) for w in weights.tolist()]
    assert regularizer(weights, gamma, mode).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("mode", MODES)
def test_hard_pairs_weigh_less_and_a_higher_pace_gives_more(mode):
    losses = torch.linspace(0, 10, 50)
    slow, fast = self_paced_weights(losses, 3.0, mode), self_paced_weights(losses, 6.0, mode)
    assert (slow.diff() <= 0).all()
    assert slow[0] == 1
    assert slow[-1] == 0
    assert (fast >= slow).all()
    assert fast.sum() > slow.sum()


@pytest.mark.parametrize("mode", MODES)
def test_ends_of_the_pace(mode):
    losses = torch.tensor([0.0, 1e-3, 5.0, 1e4])
    assert self_paced_weights(losses, math.inf, mode).tolist() == [1, 1, 1, 1]
    assert self_paced_weights(losses, 0.0, mode).tolist() == [1, 0, 0, 0]
    assert not self_paced_weights(losses.requires_grad_(), 2.0, mode).requires_grad


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tau", [0.07, 0.5])
@pytest.mark.parametrize("dim", [2, 16])
@pytest.mark.parametrize("name", LABEL_PATTERNS)
def test_equals_the_loops(name, dim, tau, mode):
    rows, bank = LABEL_PATTERNS[name]
    z = embeddings(total(rows, bank), dim, seed=dim)
    for gamma in (0.3, 1.5, 6.0, 50.0):
        loss, weighted, mean_weight, quartiles = reference.self_paced_contrast(z, rows, bank, tau, gamma, mode)
        for dtype in (torch.float64, torch.float32):
            tolerance = 10 * VALUE_TOLERANCE[dtype]
            result = contrast(z.to(dtype), rows, bank, gamma, mode, tau)
            assert result.loss.item() == pytest.approx(loss, rel=tolerance, abs=tolerance)
            assert result.weighted.item() == pytest.approx(weighted, rel=tolerance, abs=tolerance)
            assert result.mean_weight.item() == pytest.approx(mean_weight, rel=tolerance, abs=tolerance)
            found = weight_quartiles(z.to(dtype), pairs_of(rows, bank), tau, gamma, mode)
            assert found.tolist() == pytest.approx(quartiles, rel=tolerance, abs=tolerance)
            _, plain, *_ = reference.self_paced_contrast(z, rows, bank, tau, math.inf, mode)
            assert result.unweighted.item() == pytest.approx(plain, rel=tolerance, abs=tolerance)
            assert all(term.dtype == dtype for term in result)
            assert all(term.shape == () for term in result)


@pytest.mark.parametrize("gamma", [1.5, math.inf])
@pytest.mark.parametrize("mode", MODES)
def test_several_labelings_share_their_denominators(mode, gamma):
    """Each is what it would be alone, in value and gradient, also where it knows fewer labels than another."""
    labelings = [([0, 0, 1, 1, 2, 2], [0, 3]), ([0, -1, 0, 1, 1, -1], [-1, 1]), ([-1] * 6, [0, 1])]
    z = embeddings(8, 5).requires_grad_()
    together = self_paced_contrasts(z, [pairs_of(*labels) for labels in labelings], TAU, gamma, mode)
    assert together[0].loss != 0
    for labels, result in zip(labelings, together, strict=True):
        alone = contrast(z, *labels, gamma, mode)
        for a, b in zip(result, alone, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        gradients = [torch.autograd.grad(term.loss, z, retain_graph=True)[0] for term in (result, alone)]
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["uneven classes", "unknown rows", "bank with empty slots"])
def test_gradcheck_of_the_full_objective(name, mode):
    """min_w (w l + R(w)) is differentiated numerically with w following; the detached gradient must be the same."""
    rows, bank = LABEL_PATTERNS[name]
    z = embeddings(total(rows, bank), 4).requires_grad_()
    gamma = gap_gamma(z, rows, bank)
    assert 0 < contrast(z, rows, bank, gamma, mode).mean_weight < 1
    assert torch.autograd.gradcheck(lambda z: contrast(z, rows, bank, gamma, mode).loss, z)


def test_gradcheck_notices_a_missing_regularizer():
    rows, bank = LABEL_PATTERNS["unknown rows"]
    z = embeddings(total(rows, bank), 4).requires_grad_()
    gamma = gap_gamma(z, rows, bank)
    pairs = pairs_of(rows, bank)

    def without_r(z):
        losses = pair_losses(z, pairs, TAU)
        return (self_paced_weights(losses, gamma, "linear") * losses)[masks(pairs).positive].mean()

    assert not torch.autograd.gradcheck(without_r, z, raise_exception=False)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LABEL_PATTERNS)
@pytest.mark.parametrize(("gamma", "tolerance"), [(1e9, 1e-7), (math.inf, 0.0)])
def test_gamma_to_infinity_is_plain_contrast(name, mode, gamma, tolerance):
    rows, bank = LABEL_PATTERNS[name]
    z = embeddings(total(rows, bank), 6).requires_grad_()
    plain = supervised_contrast(z, pairs_of(rows, bank), 0.07)
    (expected,) = torch.autograd.grad(plain, z)
    result = contrast(z, rows, bank, gamma, mode, 0.07)
    (gradient,) = torch.autograd.grad(result.loss, z)
    assert result.loss.isfinite()
    assert result.weighted.item() == pytest.approx(plain.item(), rel=tolerance, abs=0)
    assert result.mean_weight.item() == pytest.approx(1, abs=tolerance)
    assert (gradient - expected).abs().max() <= tolerance * expected.abs().max()
    if gamma == math.inf:
        assert torch.equal(result.loss, plain)


@pytest.mark.parametrize("mode", MODES)
def test_a_pace_below_every_loss_selects_nothing(mode):
    rows, bank = LABEL_PATTERNS["two classes"]
    z = embeddings(len(rows), 6).requires_grad_()
    result = contrast(z, rows, bank, 1e-6, mode)
    result.loss.backward()
    assert (result.loss, result.weighted, result.mean_weight) == (0, 0, 0)
    assert result.unweighted > 0
    assert (z.grad == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_easy_pairs_pull_and_too_hard_ones_do_not(mode):
    """Rows 0, 1 nearly agree, rows 2, 3 are opposite: at a small pace the latter are but negatives of the former."""
    z = torch.tensor([[1.0, 0.0], [0.98, 0.2], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    rows, gamma = [0, 0, 1, 1], 1.5
    pairs = pairs_of(rows, None)
    losses = pair_losses(z, pairs, 0.5)
    weights = self_paced_weights(losses, gamma, mode)
    assert weights[0, 1] > 0
    assert weights[1, 0] > 0
    assert weights[2, 3] == weights[3, 2] == 0
    anchors = z.clone().requires_grad_()
    self_paced_contrast(anchors, pairs, 0.5, gamma, mode).loss.backward()
    assert anchors.grad[:2].abs().sum(dim=1).min() > 0
    negatives = z.clone().requires_grad_()
    self_paced_contrast(negatives, pairs_of([0, 0, 1, 2], None), 0.5, gamma, mode).loss.backward()
    torch.testing.assert_close(4 * anchors.grad, 2 * negatives.grad)  # means over 4 and over 2 anchors
    closer = z - 0.05 * torch.cat([anchors.grad[:1], torch.zeros(3, 2, dtype=z.dtype)])
    assert reference.cosine(closer[0].tolist(), z[1].tolist()) > reference.cosine(z[0].tolist(), z[1].tolist())


@pytest.mark.parametrize("gamma", [0.0, 2.0, 50.0, 1e9, math.inf])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_batches_give_a_finite_connected_loss(name, mode, gamma):
    rows, bank = DEGENERATE[name]
    z = embeddings(total(rows, bank), 4, dtype=torch.float32).requires_grad_()
    result = contrast(z, rows, bank, gamma, mode, 0.07)
    result.loss.backward()  # fails where the graph is cut
    assert all(term.isfinite().all() for term in result)
    assert z.grad.isfinite().all()
    assert not result.weighted.requires_grad
    assert not any(term.requires_grad for term in result[1:])
    if not any(reference.positives_of(i, rows, bank) for i in range(len(rows))):
        assert result == (0, 0, 0, 0)
        assert weight_quartiles(z, pairs_of(rows, bank), 0.07, gamma, mode).tolist() == [0, 0, 0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tau", [0.05, 0.07])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_precision(dtype, tau, mode, autocast):
    rows, bank = [0, 0, 1, 1, 2, 2, -1], [0, 1, 2, 3, -1]
    z = embeddings(total(rows, bank), 32, dtype=dtype)
    gamma = gap_gamma(z.double(), rows, bank, tau)
    exact = z.double().requires_grad_()
    expected = contrast(exact, rows, bank, gamma, mode, tau)
    expected.loss.backward()
    assert 0 < expected.mean_weight < 1

    z = z.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        result = contrast(z, rows, bank, gamma, mode, tau)
    result.loss.backward()
    for term, exact_term in zip(result, expected, strict=True):
        assert term.dtype == torch.float32
        assert term.tolist() == pytest.approx(exact_term.tolist(), rel=10 * VALUE_TOLERANCE[dtype])
    scale = exact.grad.abs().max()
    assert (z.grad.double() - exact.grad).abs().max() <= GRADIENT_TOLERANCE[dtype] * scale


@pytest.mark.parametrize(
    "function",
    [
        partial(self_paced_weights, torch.ones(2)),
        partial(self_paced_contrast, torch.ones(2, 3), pairs_of([0, 0], None), TAU),
    ],
)
def test_refuses_bad_arguments(function):
    with pytest.raises(ValueError, match="mode must be 'hard' or 'linear', got 'soft'"):
        function(gamma=1.0, mode="soft")
    for gamma in (-1.0, math.nan):
        with pytest.raises(ValueError, match="gamma must be at least 0"):
            function(gamma=gamma, mode="linear")


@pytest.mark.parametrize("seed", range(20))
def test_bound_of_the_pair_loss(seed):
    """log 2N + 2/tau (supplement, section 4.5): above it, hard weights select every pair."""
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(2, 40, (), generator=generator))
    tau = float(torch.empty(()).uniform_(0.03, 1.0, generator=generator))
    spread = float(torch.empty(()).uniform_(0.01, 3.0, generator=generator))
    rows = torch.randint(0, 4, (n,), generator=generator).repeat(2).tolist()
    center = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    z = center + spread * torch.randn(2 * n, 6, generator=generator, dtype=torch.float64)

    pairs = pairs_of(rows, None)
    bound = math.log(2 * n) + 2 / tau
    losses = pair_losses(z, pairs, tau)[masks(pairs).candidate]
    assert losses.min() > 0
    assert losses.max() < bound
    plain = supervised_contrast(z, pairs, tau)
    assert contrast(z, rows, None, bound, "hard", tau).weighted.item() == pytest.approx(plain.item(), rel=1e-12)
    assert contrast(z, rows, None, bound, "linear", tau).weighted < plain
    below = contrast(z, rows, None, float(losses.min()) * 0.999, "hard", tau)
    assert below.mean_weight == 0


@pytest.mark.parametrize("mode", MODES)
def test_order_of_the_images_does_not_matter(mode):
    rows, _ = LABEL_PATTERNS["uneven classes"]
    z = embeddings(len(rows), 5)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    first = contrast(z, rows, None, 2.0, mode)
    second = contrast(z[order], [rows[i] for i in order], None, 2.0, mode)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
