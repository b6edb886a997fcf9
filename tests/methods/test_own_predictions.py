"""Self-training on own predictions beyond the contract: labels move with their image, and when they count."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nnunet_semicon.data.batch import TwoStreamBatch
from nnunet_semicon.losses.geometry import moved, random_maps
from nnunet_semicon.losses.schedules import sigmoid_rampup
from nnunet_semicon.methods.base import Progress, StudentOutput, finest
from nnunet_semicon.methods.own_predictions import OwnPredictions, OwnPredictionsConfig
from tests.harness import configure, encoder_inputs, started, step

NAME = "nnUNetTrainerSelfTraining"
SIZES = pytest.mark.parametrize("size", [(8, 8), (8, 5), (4, 6, 6)])
HALFWAY = Progress(step=20, total=40)
LABELED, UNLABELED = 2, 4


def batch_of(size: tuple[int, ...], target: torch.Tensor) -> TwoStreamBatch:
    image = torch.randn(LABELED + UNLABELED, 1, *size)
    return TwoStreamBatch(image, [target], image.new_empty(0, UNLABELED, 1, *size), {}, ["x"] * len(image), LABELED)


class Pointwise:
    """A student that looks at single pixels, and a loss; both keep what they are given."""

    def __init__(self, size: tuple[int, ...], heads: int) -> None:
        torch.manual_seed(0)
        self.network = (nn.Conv2d if len(size) == 2 else nn.Conv3d)(1, heads, 1)
        self.losses: list[SimpleNamespace] = []

    def __call__(self, images: torch.Tensor) -> StudentOutput:
        self.images = images
        return StudentOutput(self.network(images), {})

    @torch.no_grad()
    def no_grad(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)

    def loss(self, logits, target, weight=None) -> torch.Tensor:
        self.losses.append(SimpleNamespace(logits=logits, target=target, weight=weight))
        return logits.sum() * 0 + 10.0 ** len(self.losses)


def method_of(has_regions: bool = False, **values) -> OwnPredictions:
    return OwnPredictions(OwnPredictionsConfig(**values), SimpleNamespace(has_regions=has_regions))


@SIZES
def test_the_target_moves_with_its_image(size):
    seen = Pointwise(size, heads=3)
    batch = batch_of(size, torch.zeros(LABELED, 1, *size, dtype=torch.int16))
    output = method_of().compute(seen, batch, seen.loss, HALFWAY)

    assert torch.equal(seen.images[:LABELED], batch.labeled)
    views = seen.images[LABELED:]
    for view, image in zip(views, batch.unlabeled, strict=True):
        assert not torch.equal(view, image), "the network would learn what it says already"
        assert torch.equal(view.flatten().sort().values, image.flatten().sort().values)
    supervised, taught = seen.losses
    assert supervised.target is batch.target
    assert taught.target.dtype == torch.int16
    # a network that looks at single pixels predicts the moved image as it does the image
    assert torch.equal(taught.target[:, 0], seen.network(views).argmax(dim=1).to(torch.int16))
    assert taught.weight is None
    assert output.loss.item() == 10 + 100


@pytest.mark.parametrize("ignore", [False, True])
def test_regions_with_and_without_an_ignore_channel(ignore):
    size = (6, 6)
    seen = Pointwise(size, heads=2)
    target = torch.ones(LABELED, 2 + ignore, *size, dtype=torch.bool)
    method_of(has_regions=True).compute(seen, batch_of(size, target), seen.loss, HALFWAY)
    taught = seen.losses[1].target
    assert taught.shape == (UNLABELED, 2 + ignore, *size)
    assert torch.equal(taught[:, :2], seen.network(seen.images[LABELED:]) > 0)
    assert not taught[:, 2:].any()


def test_the_warmup_reads_no_unlabeled_pixel():
    size = (6, 6)
    seen = Pointwise(size, heads=3)
    batch = batch_of(size, torch.zeros(LABELED, 1, *size, dtype=torch.int16))
    batch.unlabeled.fill_(torch.nan)
    method = method_of(supervised_warmup=0.5)
    output = method.compute(seen, batch, seen.loss, Progress(step=19, total=40))
    assert torch.equal(seen.images, batch.labeled)
    assert output.loss.item() == 10
    assert output.scalars.keys() == set(method.scalar_names)
    method.compute(seen, batch, seen.loss, HALFWAY)
    assert len(seen.images) == LABELED + UNLABELED


def test_the_weight_grows_after_the_warmup():
    size = (6, 6)
    batch = batch_of(size, torch.zeros(LABELED, 1, *size, dtype=torch.int16))
    losses = []
    for at in (20, 24, 28, 39):
        seen = Pointwise(size, heads=3)
        method = method_of(supervised_warmup=0.5, rampup=0.2, lambda_reg=3.0)
        losses.append(method.compute(seen, batch, seen.loss, Progress(at, 40)).loss.item())
    weights = [sigmoid_rampup(0.0, 0.2), sigmoid_rampup(0.1, 0.2), 1.0, 1.0]
    assert losses == pytest.approx([10 + 3 * weight * 100 for weight in weights])


def test_a_step_learns_the_networks_own_moved_prediction(training):
    configure(training, "own", "2d_short", labeled_per_step=2, num_epochs=10, lambda_reg=0.5)
    trainer = started(NAME, "own")
    step(trainer)
    trainer.current_epoch = 5
    network = trainer.plain_network
    batch = next(trainer.dataloader_train)
    n, image = batch["n_labeled"], batch["image"]
    torch.manual_seed(5)
    maps = random_maps(len(image) - n, image.shape[2:])
    with torch.no_grad():
        target = moved(finest(network(image[n:])).argmax(dim=1, keepdim=True), maps)
        views = torch.cat([image[:n], moved(image[n:], maps)])
        logits = network(views)
        supervised = trainer.loss([scale[:n] for scale in logits], batch["target"])
        taught = trainer.supervised_loss([scale[n:] for scale in logits], target)

    entered = encoder_inputs(trainer)
    torch.manual_seed(5)
    loss = float(step(trainer, batch)["loss"])
    assert torch.equal(entered[-1], views)
    assert loss == pytest.approx(float(supervised + 0.5 * taught), rel=1e-5)
