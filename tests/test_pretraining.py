"""Pre-training: what it trains, what it writes, and how other trainers start from it."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

from nnunet_semicon.data.batch import TwoStreamBatch
from nnunet_semicon.demo.dataset import NAME as DEMO_DATASET
from nnunet_semicon.demo.dataset import write_dataset
from nnunet_semicon.pictures.self_pacing import mean_weights
from nnunet_semicon.training.schedule import warmup_cosine
from tests.harness import (
    configure,
    encoder_inputs,
    make_trainer,
    poison_labels,
    prepare,
    run_until,
    scalars_of,
    started,
    step,
)
from tests.tiny import command

PRETRAIN = "nnUNetTrainerSPConPretrain"
CONTROL = "nnUNetTrainerSupervisedControl"


def weights_of(trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.plain_network.state_dict().items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("parent", ["2d", "3d_fullres"])
def test_the_encoder_is_trained_and_the_decoder_neither_runs_nor_changes(training, monkeypatch, parent):
    trainer = started(PRETRAIN, f"{parent}_short")
    before = weights_of(trainer)

    def fail(*args):
        raise AssertionError("the decoder ran")

    monkeypatch.setattr(trainer.plain_network.decoder, "forward", fail)
    for _ in range(2):
        step(trainer)
    moved = changed(before, weights_of(trainer))
    assert moved
    assert all(name.startswith(("encoder.", "decoder.encoder.")) for name in moved)
    assert {type(optimizer) for optimizer in trainer.optimizers} == {torch.optim.RAdam}
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 1e-5
    assert len(trainer.optimizer.param_groups) == 2  # encoder, projectors


def test_validation_watches_the_embedding_of_validation_images(training, monkeypatch):
    trainer = run_until(make_trainer(PRETRAIN, "2d_short"), None, monkeypatch)
    log = trainer.logger.local_logger.my_fantastic_logging
    rows = scalars_of(trainer)
    for epoch, row in enumerate(rows):
        assert log["val_losses"][epoch] == pytest.approx(row["val_loss"], rel=1e-5)
        assert log["mean_fg_dice"][epoch] == pytest.approx(-row["val_loss"], rel=1e-5)
        assert log["dice_per_class_or_region"][epoch] == [pytest.approx(-row["val_loss"], rel=1e-5)]
        for label in ("position", "patient"):
            assert row[f"val_contrast_{label}"] > 0
            assert 0 < row[f"val_alignment_{label}"] <= 4
            assert -8 <= row[f"val_uniformity_{label}"] < 0
    assert (Path(trainer.output_folder) / "checkpoint_best.pth").is_file()


@pytest.mark.parametrize("parent", ["2d", "3d_fullres"])
def test_validation_batches_are_of_validation_cases_and_large_enough(training, parent):
    trainer = started(PRETRAIN, f"{parent}_short")
    batch = next(trainer.dataloader_val)
    assert {case[:10] for case in batch["case"]} == {"patient003"}
    assert len(batch["image"]) >= 8
    assert batch["n_labeled"] == 0
    assert len(batch["views"][0]) == len(batch["image"])


def test_no_label_is_read_at_all(tiny, tmp_path, monkeypatch):
    copy = prepare(tiny.fresh(tmp_path))
    copy.use(monkeypatch)

    def losses() -> list[float]:
        trainer = started(PRETRAIN, "2d_short")
        return [float(step(trainer)["loss"]) for _ in range(3)]

    clean = losses()
    folder = copy.preprocessed_dataset / "nnUNetPlans_2d"
    cases = [path.stem for path in folder.glob("*.pkl")]
    assert len(cases) == 6
    poison_labels(folder, cases)
    shutil.rmtree(copy.raw_dataset / "labelsTr")
    assert losses() == clean


def test_views_differ_in_geometry_and_both_in_intensity(training):
    configure(training, "long", "2d_short", num_epochs=20)
    trainer = started(PRETRAIN, "long")
    batch = TwoStreamBatch.from_dict(next(trainer.dataloader_train))
    assert len(batch.views) == 1
    assert not torch.equal(batch.image, batch.views[0])
    entered = encoder_inputs(trainer)
    changed = 0
    for _ in range(8):
        step(trainer, vars(batch))
        changed += entered[-1].ne(torch.cat([batch.image, batch.views[0]])).flatten(1).any(dim=1)
    assert (changed >= 6).all()  # the first view too


def test_learning_rate_warms_up_and_falls_along_a_cosine(training):
    assert warmup_cosine(0, 2e-4, 0.1) == pytest.approx(2e-4 / 400)
    assert warmup_cosine(0.05, 2e-4, 0.1) == pytest.approx(2e-4 * (1 + 1 / 400) / 2)
    assert warmup_cosine(0.1, 2e-4, 0.1) == pytest.approx(2e-4)
    assert warmup_cosine(0.55, 2e-4, 0.1) == pytest.approx(1e-4, rel=1e-2)
    assert warmup_cosine(1, 2e-4, 0.1) == pytest.approx(1e-7)

    configure(training, "warm", "2d_short", num_epochs=4, num_iterations_per_epoch=4, warmup=0.5)
    trainer = started(PRETRAIN, "warm")
    seen = []
    for _ in range(3):
        step(trainer)
        seen.append(trainer.optimizer.param_groups[0]["lr"])
    np.testing.assert_allclose(np.diff(seen), 2e-4 * (1 - 1 / 400) / 8, rtol=1e-5)  # within the epoch too


@pytest.mark.parametrize(
    "name",
    [
        CONTROL,
        "nnUNetTrainerMeanTeacher",
        "nnUNetTrainerSPCon",
        PRETRAIN,
        "nnUNetTrainerPLGCL",
        "nnUNetTrainerSupervisedLocal",
        "nnUNetTrainerSupervisedLocalPretrain",
    ],
)
def test_our_trainers_start_from_it(training, monkeypatch, name):
    pretrained = run_until(make_trainer(PRETRAIN, "2d_short"), None, monkeypatch)
    checkpoint = f"{pretrained.output_folder}/checkpoint_final.pth"
    configure(training, f"from_{name}", "2d_short", seed=5)
    trainer = make_trainer(name, f"from_{name}")
    trainer.initialize()
    scratch = weights_of(trainer)
    load_pretrained_weights(trainer.network, checkpoint)
    loaded, expected = weights_of(trainer), weights_of(pretrained)
    same = {key for key in loaded if torch.equal(loaded[key], expected[key])}
    assert {key for key in loaded if key.startswith("encoder.")} <= same
    assert any(key.startswith("encoder.") for key in changed(scratch, loaded))
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    step(trainer)
    if name == "nnUNetTrainerMeanTeacher":
        teacher = trainer.method.teacher.module.state_dict()
        assert all(torch.equal(teacher[key], trainer.plain_network.state_dict()[key]) for key in teacher)


STOCK_TRAINER = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerTwoSteps(nnUNetTrainer):
    def on_train_start(self):
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 2, 1
        super().on_train_start()
"""


def test_stock_commands_pre_train_and_start_from_it(training, tmp_path):
    said = training.run("nnUNetv2_train", "901", "2d_short", "0", "-tr", PRETRAIN, "-device", "cpu").stdout
    folder = re.search(r"-pretrained_weights (\S+)", said)
    assert folder, said[-2000:]
    weights = Path(folder[1])
    assert weights.is_file()
    assert not list(weights.parent.rglob("summary.json"))
    (tmp_path / "two_steps.py").write_text(STOCK_TRAINER)  # the shortest one of nnU-Net has 250
    words = ["901", "2d", "0", "-tr", "nnUNetTrainerTwoSteps", "-device", "cpu", "-pretrained_weights", str(weights)]
    said = training.run("nnUNetv2_train", *words, nnUNet_extTrainer=str(tmp_path)).stdout
    assert "Loading pretrained weights" in said
    assert "Mean Validation Dice" in said


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["demo", "Dataset004_Hippocampus"])
def test_late_in_a_run_positive_pairs_weigh_more(name, request, tmp_path):
    """SP-Con supplement, Fig. 6: what the weights of two scans show in the last two of four snapshots."""
    raw, preprocessed, results = (tmp_path / part for part in ("raw", "preprocessed", "results"))
    raw.mkdir()
    if name == "demo":
        write_dataset(raw)
        dataset, fold, preprocess = DEMO_DATASET.removeprefix("Dataset")[:3], 0, ["semicon", "preprocess"]
    else:
        source = request.getfixturevalue("real_data") / name
        (raw / name).symlink_to(source)
        (preprocessed / name).mkdir(parents=True)
        shutil.copy(source / "splits_final.json", preprocessed / name)
        dataset, fold, preprocess = "4", 2, []
    folders = {"nnUNet_raw": raw, "nnUNet_preprocessed": preprocessed, "nnUNet_results": results}
    env = {**os.environ, **{key: str(folder) for key, folder in folders.items()}}

    def run(*words) -> None:
        done = subprocess.run([command(words[0]), *words[1:]], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    run("nnUNetv2_plan_and_preprocess", "-d", dataset, "-c", "2d", "-npfp", "2", "-np", "2")
    if preprocess:
        run(*preprocess, "-d", dataset, "-c", "2d", "-np", "2")
    budget = [
        "batch_size=32",
        "num_epochs=8",
        "num_iterations_per_epoch=60",
        "num_val_iterations_per_epoch=1",
        "seed=0",
    ]
    run("semicon", "configure", "-d", dataset, "-c", "2d", "--name", "2d_short", "--set", *budget)
    run("nnUNetv2_train", dataset, "2d_short", str(fold), "-tr", PRETRAIN, "-device", "cpu")
    snapshots = sorted(results.rglob("self_pacing_epoch*.npz"))
    assert len(snapshots) == 4
    for path in snapshots[-2:]:
        positive, negative = mean_weights(np.load(path), "position")
        assert positive > negative, path.name
    assert next(results.rglob("self_pacing.png")).is_file()
