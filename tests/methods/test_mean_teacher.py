"""Mean Teacher beyond the contract: who is compared with whom, and how the teacher moves."""

import pytest
import torch

from nnunet_semicon.losses.consistency import softmax_mse
from nnunet_semicon.losses.schedules import ema_decay, sigmoid_rampup
from nnunet_semicon.methods.base import finest
from nnunet_semicon.methods.mean_teacher import with_noise
from tests.harness import configure, started, step

NAME = "nnUNetTrainerMeanTeacher"


@pytest.fixture
def trainer(training):
    configure(training, "quiet", "2d_short", teacher_noise=0.0, consistency_weight=3.0, num_epochs=10)
    return started(NAME, "quiet")


def test_loss_is_supervised_plus_ramped_consistency_of_strong_student_and_weak_teacher(trainer):
    step(trainer)
    trainer.current_epoch = 2
    method, network = trainer.method, trainer.plain_network
    with torch.no_grad():  # otherwise the teacher would still be almost the student
        for parameter in method.teacher.parameters():
            parameter.mul_(1.3)
    batch = next(trainer.dataloader_train)
    n = batch["n_labeled"]
    with torch.no_grad():
        torch.manual_seed(5)
        student = network(torch.cat([batch["image"][:n], method.strong(batch["image"][n:])]))
        teacher = method.teacher(batch["image"][n:])
        supervised = trainer.loss([scale[:n] for scale in student], batch["target"])
        consistency = softmax_mse(finest(student)[n:], finest(teacher))
    step_number = 2 * trainer.num_iterations_per_epoch + trainer._iteration
    fraction = step_number / (trainer.num_epochs * trainer.num_iterations_per_epoch)
    expected = supervised + 3.0 * sigmoid_rampup(fraction, 0.4) * consistency

    torch.manual_seed(5)
    assert float(step(trainer, batch)["loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_teacher_is_the_moving_average_of_the_student(trainer):
    step(trainer)
    step(trainer)
    teacher = [p.clone() for p in trainer.method.teacher.parameters()]
    step(trainer)
    decay = ema_decay(2, 0.99)
    for old, new, student in zip(
        teacher, trainer.method.teacher.parameters(), trainer.plain_network.parameters(), strict=True
    ):
        torch.testing.assert_close(new, decay * old + (1 - decay) * student)


def test_teacher_equals_student_before_the_first_step_whatever_was_loaded(trainer):
    with torch.no_grad():
        for parameter in trainer.plain_network.parameters():
            parameter.add_(0.1)  # what -pretrained_weights does after initialize()
    trainer.method.on_train_start(trainer.plain_network)
    for a, b in zip(trainer.method.teacher.parameters(), trainer.plain_network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_noise_is_clipped():
    image = torch.zeros(2, 1, 64, 64)
    noise = with_noise(image, 0.1)
    assert float(noise.abs().max()) == pytest.approx(0.2)
    assert float(noise.std()) == pytest.approx(0.095, abs=0.01)
    assert torch.equal(with_noise(image, 0.0), image)
