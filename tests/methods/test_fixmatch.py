"""FixMatch beyond the contract: whose prediction is learned where, and that nothing is learned below the threshold."""

import pytest
import torch
import torch.nn.functional as F

from nnunet_semicon.methods.fixmatch import cross_entropy
from tests.harness import capture_logits, configure, encoder_inputs, started, step, without_supervision

NAME = "nnUNetTrainerFixMatch"
THRESHOLD = 0.4  # of three classes, in a network that is hardly trained
SIZES = pytest.mark.parametrize("size", [(6, 5), (4, 3, 5)])


def start(training, parent="2d", **values):
    configure(training, "quiet", f"{parent}_short", **{"threshold": THRESHOLD, "lambda_u": 3.0, **values})
    return started(NAME, "quiet")


@pytest.mark.parametrize("parent", ["2d", "3d_fullres"])
def test_loss_is_supervised_plus_cross_entropy_with_the_own_confident_prediction_of_the_weak_view(training, parent):
    trainer = start(training, parent)
    step(trainer)
    trainer.scalars.pop_means()
    batch, network = next(trainer.dataloader_train), trainer.plain_network
    n = batch["n_labeled"]
    weak = batch["image"][n:]
    torch.manual_seed(5)
    strong = trainer.method.strong(weak)
    with torch.no_grad():
        student = network(torch.cat([batch["image"][:n], strong]))
        supervised = trainer.loss([scale[:n] for scale in student], batch["target"])
        probability, label = torch.softmax(network(weak)[0].double(), dim=1).max(dim=1)
        of_label = torch.log_softmax(student[0][n:].double(), dim=1).gather(1, label[:, None])[:, 0]
    counts = probability >= THRESHOLD
    assert 0.02 < counts.float().mean() < 0.98, "the threshold decides nothing here"
    unlabeled = -of_label[counts].sum() / counts.numel()

    torch.manual_seed(5)
    assert float(step(trainer, batch)["loss"]) == pytest.approx(float(supervised + 3.0 * unlabeled), rel=1e-5)
    scalars = trainer.scalars.pop_means()
    assert set(scalars) == {"loss", *trainer.method.scalar_names}
    assert scalars["unlabeled"] == pytest.approx(float(unlabeled), rel=1e-5)
    for number in range(3):
        own = label == number
        assert scalars[f"kept_{number}"] == pytest.approx(float(counts[own].float().mean()) if own.any() else 0.0)


def test_pixels_below_the_threshold_give_no_gradient(training, monkeypatch):
    trainer = start(training)
    step(trainer)
    without_supervision(trainer, monkeypatch)
    batch = next(trainer.dataloader_train)
    n = batch["n_labeled"]
    with torch.no_grad():
        counts = torch.softmax(trainer.plain_network(batch["image"][n:])[0], dim=1).amax(dim=1) >= THRESHOLD
    logits = capture_logits(trainer)
    step(trainer, batch)
    reached = logits[-1].grad.abs().sum(dim=1) > 0
    assert torch.equal(reached[n:], counts)
    assert not reached[:n].any()
    assert 0 < counts.float().mean() < 1


def test_a_threshold_that_is_never_reached_leaves_the_supervised_loss(training, monkeypatch):
    trainer = start(training, threshold=1.0)
    without_supervision(trainer, monkeypatch)
    entered = encoder_inputs(trainer)
    assert float(step(trainer)["loss"]) == 0
    assert not entered[-1].grad.any()
    means = trainer.scalars.pop_means()
    assert means["unlabeled"] == means["kept_0"] == 0


@SIZES
def test_cross_entropy_of_classes_is_divided_by_all_pixels(size):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, *size, generator=generator, dtype=torch.float64)
    predicted = torch.randint(4, (3, 1, *size), generator=generator)
    counts = torch.rand(3, *size, generator=generator) < 0.5
    total = 0.0
    for place in counts.nonzero().tolist():
        row, *pixel = place
        values = logits[(row, slice(None), *pixel)]
        total += float(torch.logsumexp(values, 0) - values[predicted[(row, 0, *pixel)]])
    assert float(cross_entropy(logits, predicted, counts, False)) == pytest.approx(total / counts.numel())


@SIZES
def test_cross_entropy_of_regions_is_their_mean(size):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, *size, generator=generator, dtype=torch.float64)
    predicted = torch.rand(3, 2, *size, generator=generator) < 0.5
    counts = torch.rand(3, *size, generator=generator) < 0.5
    of_pixels = F.binary_cross_entropy_with_logits(logits, predicted.double(), reduction="none").mean(dim=1)
    expected = of_pixels[counts].sum() / counts.numel()
    assert float(cross_entropy(logits, predicted, counts, True)) == pytest.approx(float(expected))
