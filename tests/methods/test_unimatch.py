"""UniMatch beyond the contract: the three changed copies, what is mixed into them, and their weights."""

import pytest
import torch

from nnunet_semicon.methods.copy_paste import Targets
from nnunet_semicon.methods.unimatch import UniMatchConfig, cutmix, minus_dice, others
from tests.harness import capture_logits, configure, encoder_inputs, make_trainer, started, step, without_supervision

NAME = "nnUNetTrainerUniMatch"
THRESHOLD = 0.4  # of three classes, in a network that is hardly trained
SIZES = pytest.mark.parametrize("size", [(24, 20), (12, 10, 9)])


def start(training, parent="2d", **values):
    rows = {"batch_size": 8, "labeled_per_step": 2}  # two unlabeled images in three copies
    block = {"threshold": THRESHOLD, "lambda_u": 3.0, "cutmix_probability": 1.0, **rows, **values}
    configure(training, "quiet", f"{parent}_short", **block)
    return started(NAME, "quiet")


def naive_dice(logits, target, counts):
    """Mean over classes of the Dice of all pixels that count, in float64."""
    p = torch.softmax(logits.double(), dim=1).movedim(1, -1)[counts]
    y = target[:, 0][counts]
    dice = [(2 * p[y == k, k].sum() + 1e-5) / (p[:, k].sum() + (y == k).sum() + 1e-5) for k in range(logits.shape[1])]
    return float(sum(dice) / len(dice))


@pytest.mark.parametrize("parent", ["2d", "3d_fullres"])
def test_loss_has_weights_of_a_half_and_two_quarters(training, parent):
    trainer = start(training, parent)
    step(trainer)
    trainer.scalars.pop_means()
    batch, method = next(trainer.dataloader_train), trainer.method
    n = batch["n_labeled"]
    weak = batch["image"][n:]
    with torch.no_grad():
        probability, label = torch.softmax(trainer.plain_network(weak)[0], dim=1).max(dim=1, keepdim=True)
    counts = (probability[:, 0] >= THRESHOLD).float()
    assert 0.02 < counts.mean() < 0.98, "the threshold decides nothing here"
    torch.manual_seed(5)
    mixed = [cutmix(Targets(method.strong(weak), label, counts), method.config) for _ in range(2)]

    entered, captured = encoder_inputs(trainer), capture_logits(trainer)
    torch.manual_seed(5)
    loss = float(step(trainer, batch)["loss"])

    assert len(entered) == 1
    assert torch.equal(entered[0], torch.cat([batch["image"][:n], weak, mixed[0].images, mixed[1].images]))
    logits = captured[-1].detach()
    copies = [Targets(weak, label, counts), *mixed]
    dice = [
        naive_dice(own, copy.target, copy.weight > 0)
        for own, copy in zip(logits[n:].split(len(weak)), copies, strict=True)
    ]
    scalars = trainer.scalars.pop_means()
    assert scalars["features"] == pytest.approx(-dice[0], rel=1e-5)
    assert scalars["strong"] == pytest.approx(-(dice[1] + dice[2]) / 2, rel=1e-5)
    expected = scalars["supervised"] - 3.0 * (0.5 * dice[0] + 0.25 * dice[1] + 0.25 * dice[2])
    assert loss == pytest.approx(expected, rel=1e-5)


def test_only_the_weak_rows_lose_features(training):
    trainer = start(training)
    batch = next(trainer.dataloader_train)
    n, unlabeled = batch["n_labeled"], len(batch["image"]) - batch["n_labeled"]
    seen = []
    network, dropout = trainer.plain_network, trainer.student.dropout
    network.encoder.register_forward_pre_hook(lambda *_: seen.append(dropout.factors))
    step(trainer, batch)
    in_no_grad, factors = seen
    assert in_no_grad == []
    perturbed = torch.zeros(n + 3 * unlabeled, dtype=torch.bool)
    perturbed[n : n + unlabeled] = True
    assert all(torch.equal((factor != 1).flatten(1).all(dim=1), perturbed) for factor in factors)
    assert all((factor[~perturbed] == 1).all() for factor in factors)


def test_pixels_below_the_threshold_give_no_gradient(training, monkeypatch):
    trainer = start(training, cutmix_probability=0.0)
    step(trainer)
    without_supervision(trainer, monkeypatch)
    batch = next(trainer.dataloader_train)
    n = batch["n_labeled"]
    with torch.no_grad():
        counts = torch.softmax(trainer.plain_network(batch["image"][n:])[0], dim=1).amax(dim=1) >= THRESHOLD
    logits = capture_logits(trainer)
    step(trainer, batch)
    reached = logits[-1].grad.abs().sum(dim=1) > 0
    assert torch.equal(reached[n:], counts.repeat(3, *[1] * (counts.ndim - 1)))
    assert not reached[:n].any()
    assert 0 < counts.float().mean() < 1


def test_a_threshold_that_is_never_reached_gives_no_gradient(training, monkeypatch):
    trainer = start(training, threshold=1.0)
    without_supervision(trainer, monkeypatch)
    entered = encoder_inputs(trainer)
    assert float(step(trainer)["loss"]) == -3.0
    assert not entered[-1].grad.any()


def rows_that_tell(count, size, has_regions):
    """Images, targets and weights of which each pixel says its row."""
    number = torch.arange(count).view(-1, 1, *[1] * len(size)).expand(-1, 1, *size)
    bits = [number >> bit & 1 for bit in range(3)]
    target = torch.cat(bits, dim=1).bool() if has_regions else number.clone()
    return Targets(number.float(), target, number[:, 0] / count)


@SIZES
@pytest.mark.parametrize("has_regions", [False, True])
def test_cutmix_mixes_targets_and_weights_as_images(size, has_regions):
    torch.manual_seed(0)
    config = UniMatchConfig(cutmix_probability=1.0)
    parts = []
    for _ in range(20):
        mixed = cutmix(rows_that_tell(6, size, has_regions), config)
        shown = mixed.images[:, 0].long()
        if has_regions:
            assert torch.equal(sum(mixed.target[:, bit].long() << bit for bit in range(3)), shown)
        else:
            assert torch.equal(mixed.target[:, 0], shown)
        torch.testing.assert_close(mixed.weight, shown / 6)
        foreign = shown != torch.arange(6).view(-1, *[1] * len(size))
        sources = [shown[row][foreign[row]].unique().tolist() for row in range(6)]
        assert sorted(source for own in sources for source in own) == list(range(6)), (
            "every image gives its content to one other"
        )
        parts.append(foreign.flatten(1).float().mean(dim=1))
    parts = torch.cat(parts)
    assert 0.01 <= parts.min() < 0.08
    assert 0.32 < parts.max() <= 0.42


def test_cutmix_changes_the_asked_part_of_the_images():
    torch.manual_seed(0)
    config = UniMatchConfig(cutmix_probability=0.25)
    rows = rows_that_tell(8, (24, 20), False)
    mixed = torch.stack([(cutmix(rows, config).images != rows.images).flatten(1).any(dim=1) for _ in range(100)])
    assert 0.2 < mixed.float().mean() < 0.3


def test_a_single_image_is_mixed_with_itself():
    rows = rows_that_tell(1, (8, 8), False)
    assert others(1).tolist() == [0]
    assert torch.equal(cutmix(rows, UniMatchConfig(cutmix_probability=1.0)).images, rows.images)


@SIZES
def test_dice_of_regions(size):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, *size, generator=generator, dtype=torch.float64)
    target = torch.rand(3, 2, *size, generator=generator) < 0.5
    counts = torch.rand(3, *size, generator=generator) < 0.5
    p, y = torch.sigmoid(logits).movedim(1, -1)[counts], target.movedim(1, -1)[counts]
    dice = [(2 * p[y[:, r], r].sum() + 1e-5) / (p[:, r].sum() + y[:, r].sum() + 1e-5) for r in range(2)]
    assert float(minus_dice(logits, target, counts, True)) == pytest.approx(-float(sum(dice)) / 2)


def test_boxes_of_no_possible_size_are_refused(training):
    configure(training, "quiet", "2d_short", box_min=0.5)
    with pytest.raises(SystemExit, match=r"'box_min' is 0.5 and 'box_max' is 0.4, expected a smaller 'box_min'"):
        make_trainer(NAME, "quiet").initialize()
