"""Self-training as a term of the methods with a contrast: what it adds to a step, and all that it leaves alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import pytest
import torch

from nnunet_semicon.losses.consistency import softmax_mse
from nnunet_semicon.losses.schedules import sigmoid_rampup
from nnunet_semicon.methods.base import finest
from nnunet_semicon.methods.self_training import Kind
from nnunet_semicon.networks import swin_unet
from tests.harness import configure, encoder_inputs, make_trainer, started, step

KINDS = get_args(Kind)
SOFT = ("mean_teacher", "cross_entropy")
SP_CON, PLGCL = "nnUNetTrainerSPCon", "nnUNetTrainerPLGCL"
LOCAL, MCSC = "nnUNetTrainerSupervisedLocal", "nnUNetTrainerMCSC"
# trainer -> (rows of the student for each unlabeled image without self-training, settings without further randomness)
METHODS = {
    SP_CON: (2, {}),
    PLGCL: (1, {}),
    LOCAL: (0, {"sampling": "exact"}),
    MCSC: (1, {"pixels": "exact", "scales": {"1": 0.0}}),  # full resolution would take a minute
}
EPOCHS, EPOCH = 10, 4  # PLGCL is past its warm-up, and no weight is at its end


@dataclass(frozen=True)
class Step:
    """What one real step showed: its loss, scalars, and the student's rows with their gradients; what was planned."""

    loss: float
    scalars: dict[str, float]
    rows: torch.Tensor
    planned: int
    labeled: int
    unlabeled: int


@pytest.fixture
def step_with(training, monkeypatch) -> Callable[..., Step]:
    """One step of a trainer with any settings; all of a test have the same weights, batch and random numbers."""
    monkeypatch.setattr(swin_unet, "DROP_PATH", 0.0)
    shared: dict = {}

    def run(name: str, parent: str, **values) -> Step:
        configure(training, "taught", f"{parent}_short", num_epochs=EPOCHS, **METHODS[name][1], **values)
        if not shared:
            first = started(name, "taught")
            shared.update(batch=next(first.dataloader_train), network=first.plain_network.state_dict())
            shared["method"] = first.method.state_dict()
        trainer = make_trainer(name, "taught")
        trainer.initialize()
        trainer.on_train_epoch_start()
        trainer.plain_network.load_state_dict(shared["network"])
        own = trainer.method.state_dict()
        trainer.method.load_state_dict(own | {key: value for key, value in shared["method"].items() if key in own})
        trainer.method.on_train_start(trainer.plain_network)
        if "teacher" in trainer.method.networks():
            with torch.no_grad():  # it would be the student
                for parameter in trainer.method.teacher.parameters():
                    parameter.mul_(1.2)
        trainer.current_epoch = EPOCH
        entered = encoder_inputs(trainer)
        torch.manual_seed(5)
        loss = float(step(trainer, dict(shared["batch"]))["loss"])
        (rows,) = entered
        planned = trainer.rows
        scalars = trainer.scalars.pop_means()
        return Step(loss, scalars, rows, planned.student_rows, planned.labeled, planned.images)

    return run


@pytest.mark.parametrize("parent", ["2d", "3d_fullres"])
@pytest.mark.parametrize("name", METHODS)
def test_every_kind_adds_its_term_and_leaves_all_others_alone(step_with, name, parent):
    per_image = METHODS[name][0]
    steps = {
        kind: step_with(name, parent, self_training=kind, lambda_reg=0.5, rampup=0.8, threshold=0.0) for kind in KINDS
    }
    none = steps["none"]
    n = none.labeled
    since = EPOCH / EPOCHS - (1 / 3 if name == PLGCL else 0)
    assert math.isfinite(none.loss)
    assert "self_training" not in none.scalars
    assert len(none.rows) == n + per_image * none.unlabeled
    for kind in set(KINDS) - {"none"}:
        taught = steps[kind]
        images = taught.unlabeled
        has_own_rows = kind not in SOFT or name in (LOCAL, MCSC)
        assert len(taught.rows) == taught.planned == n + (per_image + has_own_rows) * images, kind
        assert torch.equal(taught.rows[: len(none.rows)], none.rows), f"{kind}: what the contrast sees has changed"
        assert (taught.rows.grad[-images:].flatten(1).abs().sum(dim=1) > 0).all(), f"{kind} does not reach every row"
        for scalar in none.scalars.keys() - {"loss"}:
            assert taught.scalars[scalar] == pytest.approx(none.scalars[scalar], rel=1e-4, abs=1e-6), (kind, scalar)
        term = 0.5 * sigmoid_rampup(since, 0.8) * taught.scalars["self_training"]
        assert term != 0
        assert taught.loss - none.loss == pytest.approx(term, rel=1e-3, abs=1e-5), kind


@pytest.mark.parametrize("name", METHODS)
def test_without_a_weight_there_is_no_self_training(step_with, name):
    none = step_with(name, "2d", self_training="none")
    for kind in ("copy_paste", "mean_teacher"):
        without = step_with(name, "2d", self_training=kind, lambda_reg=0.0)
        assert torch.equal(without.rows, none.rows)
        assert without.planned == none.planned == len(none.rows)
        assert (without.loss, without.scalars) == (none.loss, none.scalars)


@pytest.mark.parametrize("name", METHODS)
def test_pairs_pasted_in_both_directions_are_two_rows_for_each_image(step_with, name):
    both = step_with(name, "2d", self_training="copy_paste", paste_both=True)
    assert len(both.rows) == both.planned == both.labeled + both.unlabeled * (2 + METHODS[name][0])
    assert math.isfinite(both.loss)


def test_sp_con_is_by_default_the_mean_teacher_of_the_paper(training):
    configure(training, "default", "2d_short", num_epochs=EPOCHS, lambda_reg=0.7, lambda_sp=0.0)
    trainer = started(SP_CON, "default")
    step(trainer)
    trainer.current_epoch = EPOCH
    with torch.no_grad():
        for parameter in trainer.method.teacher.parameters():
            parameter.mul_(1.3)
    batch = next(trainer.dataloader_train)
    n = batch["n_labeled"]
    with torch.no_grad():
        torch.manual_seed(5)
        strong = trainer.method.strong(batch["image"][n:])
        student = trainer.plain_network(torch.cat([batch["image"][:n], strong]))
        supervised = trainer.loss([scale[:n] for scale in student], batch["target"])
        consistency = softmax_mse(finest(student)[n:], finest(trainer.method.teacher(batch["image"][n:])))
    torch.manual_seed(5)
    assert float(step(trainer, batch)["loss"]) == pytest.approx(float(supervised + 0.7 * consistency), rel=1e-5)
