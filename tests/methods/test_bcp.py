"""BCP beyond the contract: who is pasted into whom, what counts how much, and when the teacher begins."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nnunet_semicon.data.batch import TwoStreamBatch
from nnunet_semicon.losses.components import largest_components
from nnunet_semicon.losses.mixing import side_boxes
from nnunet_semicon.methods.base import Progress, StudentOutput, finest
from nnunet_semicon.methods.bcp import BCP, BCPConfig
from tests.harness import configure, encoder_inputs, started, step

NAME = "nnUNetTrainerBCP"
SIZES = pytest.mark.parametrize("size", [(12, 9), (6, 7, 8)])
ROWS = pytest.mark.parametrize("rows", [1, 2, 5])
WARMUP, AFTER = Progress(step=9, total=40), Progress(step=10, total=40)


def batch_of(rows: int, size: tuple[int, ...], ignore: bool = False, regions: bool = False) -> TwoStreamBatch:
    """Labeled images are 1, 2, ... everywhere, as their labels are, and unlabeled ones -1, -2, ..."""
    values = torch.arange(1, rows + 1)
    image = torch.cat([values, -values]).float().view(-1, 1, *[1] * len(size)).expand(-1, 1, *size).clone()
    if regions:
        target = torch.zeros(rows, 2 + ignore, *size, dtype=torch.bool)
        target[:, 0] = True
    else:
        target = image[:rows].to(torch.int16)
    return TwoStreamBatch(image, [target], image.new_empty(0, rows, 1, *size), {}, ["x"] * 2 * rows, rows)


class Recorder:
    """A student of one output, and a loss, that keep what they are given."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.losses: list[SimpleNamespace] = []

    def __call__(self, images: torch.Tensor) -> StudentOutput:
        self.images = images
        return StudentOutput(self.network(images), {})

    def loss(self, logits, target, weight=None) -> torch.Tensor:
        self.losses.append(SimpleNamespace(target=target, weight=weight))
        return logits.sum() * 0 + 10.0 ** len(self.losses)


def method_of(size: tuple[int, ...], heads: int = 8, has_regions: bool = False, **values) -> tuple[BCP, Recorder]:
    """A method whose teacher predicts class 7, or region 1, everywhere."""
    network = (nn.Conv2d if len(size) == 2 else nn.Conv3d)(1, heads, 1)
    nn.init.zeros_(network.weight)
    nn.init.constant_(network.bias, -1.0)
    with torch.no_grad():
        network.bias[-1] = 1.0
    return BCP(BCPConfig(**values), SimpleNamespace(network=network, has_regions=has_regions)), Recorder(network)


@ROWS
@SIZES
def test_both_directions_and_their_labels(rows, size):
    torch.manual_seed(0)
    method, seen = method_of(size)
    batch = batch_of(rows, size)
    output = method.compute(seen, batch, seen.loss, AFTER)

    inward, outward = (part[:, 0] for part in seen.images.chunk(2))
    assert len(inward) == len(outward) == rows
    boxes = inward < 0
    assert torch.equal(outward > 0, boxes), "the masks of both directions are not complementary"
    for box in boxes:
        sides = [int(box.any(dim=[b for b in range(len(size)) if b != a]).sum()) for a in range(len(size))]
        assert sides == [round(2 / 3 * n) for n in size]
        assert int(box.sum()) == torch.tensor(sides).prod()
    for row in range(rows):
        before = (row - 1) % rows
        assert inward[row].unique().tolist() == [-1 - row, 1 + row]
        assert outward[row].unique().tolist() == [-1 - before, 1 + before]

    of_labeled, of_unlabeled = seen.losses
    shows_labeled = seen.images[:, 0] > 0
    for part in seen.losses:
        target = part.target
        assert target.dtype == torch.int16
        assert torch.equal(target[:, 0][shows_labeled].float(), seen.images[:, 0][shows_labeled])
        assert (target[:, 0][~shows_labeled] == 7).all()
    assert torch.equal(of_labeled.weight.bool(), shows_labeled)
    assert torch.equal(of_unlabeled.weight, 1 - of_labeled.weight)
    assert output.loss.item() == pytest.approx(10 + 0.5 * 100)
    assert {name: float(value) for name, value in output.scalars.items()} == {"supervised": 10, "self_training": 100}


@ROWS
@SIZES
def test_the_warmup_mixes_labeled_images_and_reads_no_unlabeled_pixel(rows, size):
    torch.manual_seed(0)
    method, seen = method_of(size)
    batch = batch_of(rows, size)
    batch.unlabeled.fill_(torch.nan)
    output = method.compute(seen, batch, seen.loss, WARMUP)

    assert len(seen.images) == rows
    assert not seen.images.isnan().any()
    (only,) = seen.losses
    assert only.weight is None
    assert torch.equal(only.target.float(), seen.images)
    for row, image in enumerate(seen.images):
        assert image.unique().tolist() == sorted({1 + row, 1 + (row - 1) % rows})
    assert output.loss.item() == 10
    assert output.scalars.keys() == set(method.scalar_names)


def test_boxes_of_the_rows_and_steps_differ():
    torch.manual_seed(0)
    method, seen = method_of((30, 30))
    boxes = []
    for _ in range(2):
        method.compute(seen, batch_of(4, (30, 30)), seen.loss, AFTER)
        boxes += list(seen.images[:4] < 0)
    assert len({tuple(box.flatten().tolist()) for box in boxes}) >= 7


@pytest.mark.parametrize("is_on", [True, False])
@SIZES
def test_the_teachers_labels_keep_their_largest_component(size, is_on):
    method, seen = method_of(size, largest_component=is_on, box_side=1.0)  # inward images show the unlabeled one alone
    logits = torch.zeros(2, 8, *size)
    logits[:, 0] = 1
    logits[:, 7, 0] = 2
    logits[:, 7, 2:4] = 2
    method.teacher.forward = lambda images: logits
    method.compute(seen, batch_of(2, size), seen.loss, AFTER)
    labels = seen.losses[0].target[:2, 0]
    assert (labels[:, 0] == (0 if is_on else 7)).all()
    assert (labels[:, 2:4] == 7).all()
    assert (labels[:, [1, 4]] == 0).all()


@pytest.mark.parametrize("ignore", [False, True])
def test_regions_with_and_without_an_ignore_channel(ignore):
    torch.manual_seed(0)
    size = (12, 9)
    method, seen = method_of(size, heads=2, has_regions=True)
    method.compute(seen, batch_of(2, size, ignore, regions=True), seen.loss, AFTER)
    target = seen.losses[0].target
    shows_labeled = seen.images[:, 0] > 0
    assert target.dtype == torch.bool
    assert target.shape == (4, 2 + ignore, *size)
    assert torch.equal(target[:, 0], shows_labeled)
    assert torch.equal(target[:, 1], ~shows_labeled)
    assert not target[:, 2:].any()


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 1, 3)])
def test_patches_of_a_few_voxels(size):
    method, seen = method_of(size)
    for progress in (WARMUP, AFTER):
        assert method.compute(seen, batch_of(2, size), seen.loss, progress).loss.isfinite()


def test_the_teacher_is_the_student_until_the_warmup_ends_then_its_moving_average():
    method, seen = method_of((4, 4))
    network = seen.network
    history = []
    for progress in (WARMUP, AFTER, AFTER):
        with torch.no_grad():
            network.bias.add_(torch.rand_like(network.bias))
        method.after_step(network, None, None, progress)
        history.append((network.bias.clone(), method.teacher.module.bias.clone()))
    (first, at_first), (second, at_second), (third, at_third) = history
    assert torch.equal(at_first, first)
    torch.testing.assert_close(at_second, 0.99 * first + 0.01 * second)
    torch.testing.assert_close(at_third, 0.99 * at_second + 0.01 * third)


def test_a_step_computes_the_printed_loss(training):
    configure(training, "bcp", "2d_short", labeled_per_step=3, num_epochs=10, unlabeled_weight=0.25)
    trainer = started(NAME, "bcp")
    step(trainer)
    trainer.current_epoch = 5
    method, network = trainer.method, trainer.plain_network
    with torch.no_grad():  # otherwise the teacher would still be almost the student
        for parameter in method.teacher.parameters():
            parameter.mul_(1.3)
    batch = next(trainer.dataloader_train)
    n, image, labels = batch["n_labeled"], batch["image"], batch["target"][0]
    assert n == 3
    assert len(image) == 6
    torch.manual_seed(5)
    boxes = side_boxes(n, image.shape[2:], 2 / 3)
    with torch.no_grad():
        pseudo = largest_components(finest(method.teacher(image[n:])).argmax(dim=1, keepdim=True))
        mixed, target, weight = [], [], []
        for row, box in enumerate(boxes):
            mixed.append(torch.where(box, image[n + row], image[row]))
            target.append(torch.where(box, pseudo[row].to(labels.dtype), labels[row]))
            weight.append(~box)
        for row, box in enumerate(boxes):
            pair = (row - 1) % n
            mixed.append(torch.where(box, image[pair], image[n + pair]))
            target.append(torch.where(box, labels[pair], pseudo[pair].to(labels.dtype)))
            weight.append(box)
        logits = network(torch.stack(mixed))
        target, weight = torch.stack(target), torch.stack(weight).float()
        of_labeled = trainer.supervised_loss(logits, target, weight)
        of_unlabeled = trainer.supervised_loss(logits, target, 1 - weight)

    entered = encoder_inputs(trainer)
    torch.manual_seed(5)
    loss = float(step(trainer, batch)["loss"])
    assert torch.equal(entered[0], torch.stack(mixed))
    assert loss == pytest.approx(float(of_labeled + 0.25 * of_unlabeled), rel=1e-5)


def test_the_warmup_of_a_run(training):
    configure(training, "bcp_warmup", "2d_short", labeled_per_step=2, num_epochs=4)
    trainer = started(NAME, "bcp_warmup")
    batch = next(trainer.dataloader_train)
    batch["image"][batch["n_labeled"] :] = torch.nan
    entered = encoder_inputs(trainer)
    assert torch.tensor(step(trainer, batch)["loss"]).isfinite()
    assert len(entered[0]) == 2
    for own, student in zip(trainer.method.teacher.parameters(), trainer.plain_network.parameters(), strict=True):
        assert torch.equal(own, student)
    trainer.current_epoch = 1  # of 4: a quarter is done
    step(trainer)
    assert len(entered[1]) == 4
