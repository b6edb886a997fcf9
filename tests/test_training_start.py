"""What a training starts from: its two streams, pre-trained weights, a checkpoint."""

import shutil
from pathlib import Path

import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint

from tests.harness import SPLIT, configure, differing, make_trainer, prepare, run_until, started, state_of
from tests.tiny import write_json

with_teacher = pytest.mark.parametrize("name", ["nnUNetTrainerMeanTeacher", "nnUNetTrainerSPCon"])
IMAGES_UN = ["patient004_frame01", "patient004_frame02", "patient005_frame01", "patient005_frame02"]


def student_and_teacher(trainer):
    copies = [
        {k: v.clone() for k, v in m.state_dict().items()}
        for m in (trainer.plain_network, trainer.method.teacher.module)
    ]
    return copies[0], copies[1]


@with_teacher
def test_pretrained_weights_reach_the_teacher(training, monkeypatch, name):
    configure(training, "2d_other", "2d_short", seed=1)
    pretrained = run_until(make_trainer(name, "2d_other"), None, monkeypatch)

    trainer = make_trainer(name, "2d_short")
    trainer.initialize()
    at_random, _ = student_and_teacher(trainer)
    maybe_load_checkpoint(trainer, False, False, f"{pretrained.output_folder}/checkpoint_final.pth")
    trainer.on_train_start()
    student, teacher = student_and_teacher(trainer)

    assert differing(student, teacher) == []
    loaded = differing(student, at_random)
    assert loaded
    assert not [key for key in loaded if ".seg_layers." in key], "nnU-Net leaves the last layers out"
    source = pretrained.plain_network.state_dict()
    assert all(torch.equal(student[key], source[key]) for key in loaded)


@with_teacher
def test_a_resumed_run_keeps_its_teacher(training, monkeypatch, name):
    run_until(make_trainer(name, "2d_short"), 1, monkeypatch)
    resumed = make_trainer(name, "2d_short", continue_training=True)
    maybe_load_checkpoint(resumed, True, False)
    resumed.on_train_start()
    student, teacher = student_and_teacher(resumed)
    stored = torch.load(f"{resumed.output_folder}/checkpoint_latest.pth", weights_only=False)["semicon"]["method"]

    assert differing(student, teacher)
    assert all(torch.equal(teacher[key], stored[f"teacher.module.{key}"]) for key in teacher)


@with_teacher
def test_continuing_a_finished_run_changes_nothing(training, monkeypatch, name):
    finished = state_of(run_until(make_trainer(name, "2d_short"), None, monkeypatch))
    again = make_trainer(name, "2d_short", continue_training=True)
    maybe_load_checkpoint(again, True, False)
    run_until(again, None, monkeypatch)
    assert differing(finished, state_of(again)) == []
    stored = torch.load(f"{again.output_folder}/checkpoint_final.pth", weights_only=False)
    assert stored["current_epoch"] == 2
    assert differing(stored["network_weights"], again.plain_network.state_dict()) == []


def drawn_from(trainer) -> list[str]:
    return list(trainer.dataloader_train.data_loader.unlabeled.cases)


def log_of(trainer) -> str:
    return Path(trainer.log_file).read_text()


def test_both_sources_of_unlabeled_cases(training):
    trainer = started("nnUNetTrainerMeanTeacher", "2d_short")
    assert sorted(drawn_from(trainer)) == sorted(SPLIT["unlabeled"] + IMAGES_UN)
    assert "labeled 2, unlabeled 6 (imagesUn 4, split 2), validation 2" in log_of(trainer)
    seen = {case for _ in range(40) for case in next(trainer.dataloader_train)["case"]}
    assert seen == {*SPLIT["train"], *SPLIT["unlabeled"], *IMAGES_UN}, "a validation case, or not all cases"


def test_fold_all_uses_images_un_alone(training):
    trainer = started("nnUNetTrainerMeanTeacher", "2d_short", fold="all")
    assert sorted(drawn_from(trainer)) == IMAGES_UN
    assert "labeled 6, unlabeled 4 (imagesUn 4, split 0), validation 6" in log_of(trainer)


@with_teacher
def test_a_dataset_without_unlabeled_cases_trains_and_says_so(tiny, tmp_path, monkeypatch, name):
    copy = prepare(tiny.fresh(tmp_path))
    copy.use(monkeypatch)
    shutil.rmtree(copy.raw_dataset / "imagesUn")
    shutil.rmtree(copy.preprocessed_dataset / "nnUNetPlans_2d_unlabeled")
    write_json(copy.preprocessed_dataset / "splits_final.json", [{key: SPLIT[key] for key in ("train", "val")}])
    trainer = run_until(make_trainer(name, "2d_short"), None, monkeypatch)
    assert drawn_from(trainer) == SPLIT["train"]
    assert "no unlabeled case: the training cases are the unlabeled stream, without their labels" in log_of(trainer)
