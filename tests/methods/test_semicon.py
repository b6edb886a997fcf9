"""Semicon beyond the contract: what the student sees and is to predict there, and what the teacher sees."""

import pytest
import torch

from nnunet_semicon.data.batch import TwoStreamBatch
from nnunet_semicon.losses.schedules import ema_decay, sigmoid_rampup
from nnunet_semicon.methods.base import finest
from nnunet_semicon.methods.copy_paste import boxes, partners
from tests.harness import configure, encoder_inputs, started, step

NAME = "nnUNetTrainerSemicon"


def halfway(training, parent="2d", **values):
    """A trainer in the middle of its run, whose teacher is neither its student nor unsure of everything."""
    configure(training, f"{parent}_pasting", f"{parent}_short", num_epochs=10, labeled_per_step=2, **values)
    trainer = started(NAME, f"{parent}_pasting")
    trainer.current_epoch = 2
    with torch.no_grad():
        for parameter in trainer.method.teacher.parameters():
            parameter.mul_(1.3)
    return trainer


@pytest.mark.parametrize("parent", ["2d", "3d_fullres"])
def test_a_step_computes_the_printed_loss(training, parent):
    trainer = halfway(training, parent, unlabeled_per_step=3, lambda_reg=0.5, rampup=0.4, threshold=0.5)
    method = trainer.method
    batch = TwoStreamBatch.from_dict(next(trainer.dataloader_train))
    n, images, labels = batch.n_labeled, batch.image, batch.target[0]
    assert (n, len(images)) == (2, 5)
    with torch.no_grad():
        probability, pseudo = finest(method.teacher(images[n:])).softmax(dim=1).max(dim=1)
        torch.manual_seed(5)
        strong = method.strong(images[n:])
        masks = boxes(method.config, 3, tuple(images.shape[2:]), 0.7)
        sources = partners(3, n)
        changed, target, weight = [], [], []
        for row, (mask, source) in enumerate(zip(masks, sources, strict=True)):
            changed.append(torch.where(mask, images[source], strong[row]))
            target.append(torch.where(mask, labels[source, 0], pseudo[row].to(labels.dtype))[None])
            weight.append(torch.where(mask, 1.0, (probability[row] >= 0.5).float()))
        changed, target, weight = torch.stack(changed), torch.stack(target), torch.stack(weight)
        logits = trainer.plain_network(torch.cat([images[:n], changed]))
        supervised = trainer.loss([scale[:n] for scale in logits], batch.target)
        taught = trainer.supervised_loss([scale[n:] for scale in logits], target, weight)
    assert masks.any()
    assert not masks.all()
    assert 0 < weight.mean() < 1
    expected = supervised + 0.5 * sigmoid_rampup(0.2, 0.4) * taught

    entered = encoder_inputs(trainer)
    torch.manual_seed(5)
    loss = float(step(trainer, vars(batch))["loss"])
    assert torch.equal(entered[0], torch.cat([images[:n], changed]))
    assert loss == pytest.approx(float(expected), rel=1e-5)
    assert trainer.scalars.pop_means()["self_training"] == pytest.approx(float(taught), rel=1e-5)


def test_the_teacher_sees_images_without_strong_changes(training):
    trainer = halfway(training)
    batch = next(trainer.dataloader_train)
    seen = []
    trainer.method.teacher.module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    unlabeled = batch["image"][batch["n_labeled"] :].clone()
    step(trainer, batch)
    (images,) = seen
    assert torch.equal(images, unlabeled)


def test_the_teacher_is_the_moving_average_of_the_student(training):
    trainer = started(NAME, "2d_short")
    for own, student in zip(trainer.method.teacher.parameters(), trainer.plain_network.parameters(), strict=True):
        assert torch.equal(own, student)
    step(trainer)
    step(trainer)
    before = [parameter.clone() for parameter in trainer.method.teacher.parameters()]
    step(trainer)
    decay = ema_decay(2, 0.99)
    for old, new, student in zip(
        before, trainer.method.teacher.parameters(), trainer.plain_network.parameters(), strict=True
    ):
        torch.testing.assert_close(new, decay * old + (1 - decay) * student)


def test_impossible_boxes_are_one_sentence(training):
    configure(training, "impossible", "2d_short", box_min=0.7)
    with pytest.raises(SystemExit, match=r"'box_min' is 0\.7 and 'box_max' is 0\.6, expected a smaller 'box_min'"):
        started(NAME, "impossible")


@pytest.mark.parametrize("values", [{"self_training": "none"}, {"lambda_reg": 0.0}])
def test_without_self_training_it_is_the_control(training, values):
    losses = []
    configure(training, "alone", "2d_short", **values)
    for name, configuration in (("nnUNetTrainerSupervisedControl", "2d_short"), (NAME, "alone")):
        trainer = started(name, configuration)
        assert trainer.rows.images == 0
        losses.append(float(step(trainer)["loss"]))
    assert losses[0] == losses[1]
