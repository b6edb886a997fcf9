"""The trainer's plumbing: curves, schedules, checkpoints, kinds of labels."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import load_pickle, write_pickle

from nnunet_semicon.methods.base import Method
from nnunet_semicon.methods.sp_con import SPCon
from nnunet_semicon.training import checkpoint as checkpoints
from nnunet_semicon.training.schedule import LearningRates
from tests.harness import configure, make_trainer, prepare, run_until, scalars_of, started, step, trusting
from tests.tiny import read_json, write_json

MEAN_TEACHER, SPCON = "nnUNetTrainerMeanTeacher", "nnUNetTrainerSPCon"


def test_curves_go_to_the_file_the_figure_and_the_other_loggers(training, monkeypatch):
    class Recorder:
        def __init__(self):
            self.logged = {}

        def log(self, key, value, step):
            self.logged[key, step] = value

        def update_config(self, config):
            pass

    trainer = make_trainer(SPCON, "2d_short")
    trainer.logger.loggers.append(Recorder())
    run_until(trainer, None, monkeypatch, pictures=True)
    rows = scalars_of(trainer)
    logged = trainer.logger.loggers[0].logged
    assert logged["semicon/self_training", 1] == rows[1]["self_training"]
    assert ("train_losses", 1) in logged
    assert rows[1]["loss"] == pytest.approx(float(trainer.logger.get_value("train_losses", step=1)), rel=1e-5)
    assert trainer.scalars.figure.stat().st_size > 5000


def test_a_new_run_in_an_old_folder_starts_its_curves_anew(training, monkeypatch):
    for _ in range(2):
        trainer = run_until(make_trainer(MEAN_TEACHER, "2d_short"), None, monkeypatch)
    assert [row["epoch"] for row in scalars_of(trainer)] == [0, 1]


def test_every_group_keeps_its_own_learning_rate():
    weight, bias = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    first = torch.optim.SGD([{"params": [weight], "lr": 0.1}, {"params": [bias], "lr": 0.02}])
    second = torch.optim.Adam([torch.nn.Parameter(torch.ones(1))], lr=1e-3)
    schedule = LearningRates([first, second], epochs=10)
    schedule.step(5)
    factor = 0.5**0.9
    assert [group["lr"] for group in first.param_groups] == pytest.approx([0.1 * factor, 0.02 * factor])
    assert second.param_groups[0]["lr"] == pytest.approx(1e-3 * factor)
    schedule.step(0)
    assert first.param_groups[0]["lr"] == 0.1


def test_a_group_that_warms_up_leaves_the_rates_of_the_others_alone():
    rates = []
    for others in ([], [{"params": [torch.nn.Parameter(torch.ones(1))], "warmup": 0.1}]):
        student = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.01)
        second = [torch.optim.AdamW(others, lr=1e-3)] if others else []
        schedule = LearningRates([student, *second], epochs=10)
        assert schedule.changes_within_epochs is bool(others)
        for epoch in (0, 0.5, 3.25, 9.75):
            schedule.step(epoch)
            rates.append(student.param_groups[0]["lr"])
    assert rates[:4] == rates[4:] == [0.01 * (1 - epoch / 10) ** 0.9 for epoch in (0, 0, 3, 9)]
    assert second[0].param_groups[0]["lr"] == pytest.approx(1e-3 * 0.025**0.9)  # within the epoch


@pytest.mark.parametrize("own", [True, False])
def test_heads_are_trained_by_exactly_one_optimizer_and_teachers_by_none(training, monkeypatch, own):
    if not own:  # then nnU-Net's own optimizer takes what nobody else does
        monkeypatch.setattr(SPCon, "optimizers", Method.optimizers)
    trainer = started(SPCON, "2d_short")
    optimized = [{id(p) for group in o.param_groups for p in group["params"]} for o in trainer.optimizers]
    heads = {id(p) for p in trainer.method.contrast.heads.parameters()}
    assert [heads <= ids for ids in optimized] == ([False, True] if own else [True])
    assert sum(bool(heads & ids) for ids in optimized) == 1
    assert not {id(p) for p in trainer.method.teacher.parameters()} & set().union(*optimized)


def test_an_interrupted_save_leaves_the_old_checkpoint(training, monkeypatch):
    trainer = started(SPCON, "2d_short")
    path = f"{trainer.output_folder}/checkpoint_latest.pth"
    trainer.save_checkpoint(path)
    before = torch.load(path, weights_only=False)
    step(trainer)
    save = torch.save

    def half(content, target):
        save(content, target)
        if isinstance(target, str | Path):
            with open(target, "r+b") as file:
                file.truncate(1000)
            raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        trainer.save_checkpoint(path)
    monkeypatch.undo()
    after = torch.load(path, weights_only=False)
    assert after["network_weights"].keys() == before["network_weights"].keys()
    name = next(iter(before["network_weights"]))
    assert torch.equal(after["network_weights"][name], before["network_weights"][name])


def test_random_states_come_back():
    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(1)), float(np.random.randn())

    np.random.randn()  # leaves a cached second value behind
    state = checkpoints.random_state()
    first = draw()
    assert draw() != first
    checkpoints.set_random_state(state)
    assert draw() == first


def test_the_extra_entry_holds_tensors_and_plain_containers_only(training):
    trainer = started(SPCON, "2d_short")
    step(trainer)
    path = f"{trainer.output_folder}/checkpoint_latest.pth"
    trainer.save_checkpoint(path)
    extra = torch.load(path, weights_only=False)["semicon"]
    torch.save(extra, path)
    assert torch.load(path, weights_only=True).keys() == extra.keys()


def test_no_checkpoint_where_the_user_wants_none(training, tmp_path):
    trainer = started(MEAN_TEACHER, "2d_short")
    trainer.disable_checkpointing = True
    trainer.save_checkpoint(str(tmp_path / "none.pth"))
    assert not (tmp_path / "none.pth").exists()


def test_one_labeled_row_still_meets_the_foreground(training):
    configure(training, "one", "3d_fullres_short", labeled_per_step=1)
    trainer = started(MEAN_TEACHER, "one")
    assert trainer.rows.labeled == 1
    labeled = trainer.dataloader_train.data_loader.labeled
    assert {labeled.get_do_oversample(0) for _ in range(50)} == {True, False}
    control = started("nnUNetTrainerSupervisedControl", "3d_fullres_short")
    labeled = control.dataloader_train.data_loader.labeled
    assert [labeled.get_do_oversample(i) for i in range(2)] == [False, True]  # as stock


@pytest.mark.parametrize(
    ("name", "scalar"),
    [
        (MEAN_TEACHER, "consistency"),
        (SPCON, "self_training"),
        ("nnUNetTrainerPLGCL", "contrast"),
        ("nnUNetTrainerSupervisedLocal", "local"),
        ("nnUNetTrainerSupervisedLocalPretrain", "local"),
        ("nnUNetTrainerMCSC", "contrast"),
        ("nnUNetTrainerCrossTeaching", "cross_second"),
        ("nnUNetTrainerCPS", "cross_second"),
        ("nnUNetTrainerFixMatch", "unlabeled"),
        ("nnUNetTrainerUniMatch", "kept_0"),
    ],
)
@pytest.mark.parametrize("kind", ["regions", "ignore"])
def test_region_based_and_ignore_labels_train(tiny, tmp_path, monkeypatch, name, scalar, kind):
    copy = prepare(tiny.fresh(tmp_path))
    copy.use(monkeypatch)
    path = copy.preprocessed_dataset / "dataset.json"
    description = read_json(path)
    if kind == "regions":
        description["labels"] = {"background": 0, "whole": [1, 2], "core": 2}
        description["regions_class_order"] = [1, 2]
    else:
        description["labels"]["ignore"] = 3
        # what nnU-Net's preprocessing adds for a dataset with an ignore label
        for file in (copy.preprocessed_dataset / "nnUNetPlans_2d").glob("*.pkl"):
            properties = load_pickle(str(file))
            properties["class_locations"][-1, 0, 1, 2] = properties["class_locations"][1]
            write_pickle(properties, str(file))
    write_json(path, description)
    trainer = started(name, trusting(name, "2d_short", copy))
    trainer.current_epoch = 1  # past every warm-up
    assert trainer.label_manager.has_regions == (kind == "regions")
    assert trainer.label_manager.has_ignore_label == (kind == "ignore")
    for _ in range(2):
        assert np.isfinite(step(trainer)["loss"])
    assert trainer.scalars.pop_means()[scalar] > 0
    trainer.on_validation_epoch_start()
    with torch.no_grad():
        assert np.isfinite(trainer.validation_step(next(trainer.dataloader_val))["loss"])


def test_seeds_decide(training):
    configure(training, "other_seed", "2d_short", seed=1)
    losses = [float(step(started(MEAN_TEACHER, c))["loss"]) for c in ("2d_short", "2d_short", "other_seed")]
    assert losses[0] == losses[1] != losses[2]
