"""The variants of SP-Con's contrast, in the joint method and in the pre-training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_semicon.networks.taps import encoder_tap
from nnunet_semicon.pictures.self_pacing import mean_weights
from tests import ddp
from tests.harness import (
    capture_gradients,
    configure,
    draw_no_strong_views,
    gradients_of,
    make_trainer,
    run_until,
    scalars_of,
    started,
    state_of,
    step,
    without_supervision,
)

JOINT, PRETRAIN = "nnUNetTrainerSPCon", "nnUNetTrainerSPConPretrain"
SIMCLR, META = "nnUNetTrainerSimCLRPretrain", "nnUNetTrainerMetaContrastPretrain"
both = pytest.mark.parametrize("name", [JOINT, PRETRAIN])


@both
def test_two_processes_compute_what_one_does_with_all_rows(training, monkeypatch, name):
    values = {"num_epochs": 8, "lambda_reg": 0.0, "lambda": {"self": 0.5}}
    rows = {JOINT: {"batch_size": 8, "labeled_per_step": 4, "unlabeled_per_step": 2}, PRETRAIN: {"batch_size": 4}}
    configure(training, "gathered", "2d_short", **rows[name], **values)
    single = started(name, "gathered")
    without_supervision(single, monkeypatch)
    draw_no_strong_views(single)
    start = state_of(single)
    batches = [next(single.dataloader_train) for _ in range(3)]
    assert len(batches[0]["image"]) - batches[0]["n_labeled"] == ddp.WORLD
    expected = []
    for batch in batches:
        step(single, batch)
        expected.append((single.scalars.pop_means(), gradients_of(single)))

    ranks = ddp.train(name, "gathered", len(batches), batches, only_method=True)

    for rank in ranks:
        assert all(torch.equal(rank["start"][key], value) for key, value in start.items())
        for index, (scalars, gradients) in enumerate(expected):
            found = rank["scalars"][index]
            assert found["loss"] == pytest.approx(scalars["loss"], rel=1e-6)
            assert found == pytest.approx(scalars, rel=1e-5, abs=1e-6)
            largest = max(float(g.abs().max()) for g in gradients.values())
            for key, gradient in gradients.items():
                torch.testing.assert_close(rank["gradients"][index][key], gradient, rtol=1e-4, atol=5e-6 * largest)
    queue = "method.contrast.queues.0.labels"
    assert (ranks[0]["state"][queue] == state_of(single)[queue]).all()
    assert sum(expected[2][0][f"contrast_{k}"] for k in ("position", "patient", "self")) > 0


@both
@pytest.mark.parametrize("regularizer", ["hard", "none"])
def test_every_regularizer_trains(training, name, regularizer):
    configure(training, regularizer, "2d_short", regularizer=regularizer)
    trainer = started(name, regularizer)
    for _ in range(3):
        step(trainer)
    means = trainer.scalars.pop_means()
    assert set(means) == {"loss", *trainer.method.scalar_names}
    assert ("gamma" in means) == (regularizer == "hard")
    assert means["contrast_position"] > 0


def test_hard_weights_end_below_the_bound_and_select(training):
    configure(training, "hard_bound", "2d_short", regularizer="hard", gamma_start=0.0, gamma_end=1.0)
    trainer = started(PRETRAIN, "hard_bound")
    for _ in range(3):
        step(trainer)
    assert trainer.scalars.pop_means()["contrast_position"] == 0  # nothing is that easy yet


@both
def test_self_is_simclr(training, monkeypatch, name):
    configure(training, "self", "2d_short", **{"lambda": {"position": 0.0, "patient": 0.0, "self": 1.0}})
    trainer = started(name, "self")
    assert trainer.method.contrast.labels == ("self",)
    without_supervision(trainer, monkeypatch)
    gradients = capture_gradients(trainer, monkeypatch)
    for _ in range(3):
        step(trainer)
    queue = trainer.method.contrast.queues[0]
    assert set(queue.labels.tolist()) == {-2, -1}  # negatives, and slots that are still empty
    assert sum(float(g.abs().sum()) for key, g in gradients.items() if key.startswith("network.encoder")) > 0


def test_named_defaults_are_overridden_entry_by_entry(training):
    trainer = make_trainer(SIMCLR, "2d_short")
    trainer.initialize()
    assert trainer.method.contrast.weights == {"self": 1.0}
    assert not trainer.method.contrast.is_self_paced
    assert trainer.resolved.settings["regularizer"].reason == "default of this trainer"
    configure(training, "paced", "2d_short", regularizer="linear", **{"lambda": {"patient": 0.5}})
    paced = make_trainer(SIMCLR, "paced")
    paced.initialize()
    assert paced.method.contrast.weights == {"patient": 0.5, "self": 1.0}
    assert paced.method.contrast.is_self_paced
    meta = make_trainer(META, "2d_short")
    meta.initialize()
    assert meta.method.contrast.weights == {"position": 1.0, "patient": 0.01}
    assert not meta.method.contrast.is_self_paced


@both
def test_random_sampler_draws_single_images_of_all_training_cases(training, name):
    configure(training, "random", "2d_short", sampler="random", batch_size=8, seed=1)
    trainer = started(name, "random")
    assert trainer.rows.scans == 0
    drawn = set()
    for _ in range(10):
        batch = next(trainer.dataloader_train)
        drawn |= set(batch["case"][batch["n_labeled"] :])
    # labeled, unlabeled by the split, imagesUn; never a validation case
    assert {case[:10] for case in drawn} == {"patient001", "patient002", "patient004", "patient005"}


@both
def test_a_tap_above_the_bottleneck(training, name):
    configure(training, "above", "2d_short", tap_level=1)
    trainer = started(name, "above")
    encoder = trainer.plain_network.encoder
    assert trainer.method.contrast.tap == encoder_tap(1)
    pooled = encoder.output_channels[-2] * 2**2
    assert trainer.method.contrast.heads.projectors[0].mlp[0].in_features == pooled
    step(trainer)
    configure(training, "too_high", "2d_short", tap_level=9)
    with pytest.raises(SystemExit, match=r"9 stages above the bottleneck.*choose a tap_level of at most"):
        make_trainer(name, "too_high").initialize()


def test_a_shared_projector_embeds_once(training):
    configure(training, "shared", "2d_short", shared_projector=True)
    trainer = started(PRETRAIN, "shared")
    contrast = trainer.method.contrast
    assert contrast.labels == ("position", "patient")
    assert len(contrast.heads.projectors) == 1
    batch = next(trainer.dataloader_train)
    with torch.no_grad():
        features = trainer._encode_in_parts(batch["image"]).features[contrast.tap]
        embeddings = contrast.heads(features)
    assert torch.equal(embeddings["position"], embeddings["patient"])
    step(trainer, batch)


def test_without_mean_teacher_and_queue_there_is_no_teacher(training):
    configure(training, "no_teacher", "2d_short", lambda_reg=0.0, queue_size=0, batch_size=8)
    trainer = started(JOINT, "no_teacher")
    step(trainer)
    assert trainer.method.teacher is None
    assert "consistency" not in trainer.scalars.pop_means()
    assert not any("teacher" in key for key in state_of(trainer))


@both
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gamma_start": 3.0, "gamma_end": 2.0}, "gamma_end is 2 and gamma_start 3, expected a threshold that grows"),
        ({"temperature": 0.0}, "'temperature' in .* is 0.0, expected at least 0.005"),
        ({"lambda": {"patient": -1}}, "'lambda.patient' in .* is -1, expected at least 0"),
        ({"lambda": {"phase": 1.0}}, "unknown entry 'lambda.phase'"),
        ({"regularizer": "soft"}, "expected one of linear, hard, none"),
    ],
)
def test_bad_values_are_one_sentence(training, name, values, message):
    configure(training, "bad", "2d_short", **values)
    with pytest.raises(SystemExit, match=message) as stopped:
        make_trainer(name, "bad").initialize()
    assert "configuration 'bad'" in str(stopped.value)


def test_pre_training_needs_a_meta_label(training):
    zeros = {"position": 0.0, "patient": 0.0}
    configure(training, "nothing", "2d_short", **{"lambda": zeros})
    with pytest.raises(SystemExit, match=r"nothing to learn.*lambda\.self=1"):
        make_trainer(PRETRAIN, "nothing").initialize()


@pytest.mark.parametrize(
    ("name", "parent"),
    [
        (PRETRAIN, "2d"),
        (JOINT, "3d_fullres"),
        pytest.param(JOINT, "2d", marks=pytest.mark.slow),
        pytest.param(PRETRAIN, "3d_fullres", marks=pytest.mark.slow),
    ],
)
def test_snapshots_show_the_weights_of_two_scans(training, monkeypatch, name, parent):
    configure(training, f"{parent}_shown", f"{parent}_short", num_epochs=4, num_iterations_per_epoch=1)
    trainer = run_until(make_trainer(name, f"{parent}_shown"), None, monkeypatch, pictures=True)
    folder = Path(trainer.output_folder)
    files = sorted(path.name for path in (folder / "snapshots").iterdir())
    assert files == [f"self_pacing_epoch{epoch:04d}.npz" for epoch in (1, 2, 3, 4)]
    assert (folder / "self_pacing.png").stat().st_size > 5000

    last = dict(np.load(folder / "snapshots" / files[-1]))
    n = len(last["scan"])
    assert set(last["scan"]) == {0, 1}
    assert (np.diff(last["scan"]) >= 0).all()
    assert last["weight_position"].shape == (n, n)
    assert (np.diag(last["weight_position"]) == 0).all()
    # positions rise from slice to slice, patients differ between the two scans
    of_patient = last["positive_patient"].astype(bool)
    same_scan = last["scan"][:, None] == last["scan"]
    assert (of_patient == (same_scan & ~np.eye(n, dtype=bool))).all()
    assert not last["positive_position"].astype(bool)[0, n // 2 - 1]
    assert float(last["gamma"]) == pytest.approx(trainer.method.contrast.gamma(1.0))
    positive, negative = mean_weights(last, "position")
    assert 0 <= negative <= 1
    assert 0 <= positive <= 1


def test_quartiles_of_the_weights_are_ordered(training, monkeypatch):
    trainer = run_until(make_trainer(PRETRAIN, "2d_short"), None, monkeypatch)
    for row in scalars_of(trainer):
        assert row["weight_q1_position"] <= row["weight_q2_position"] <= row["weight_q3_position"]
    settings = json.loads((Path(trainer.output_folder) / "semicon_config.json").read_text())["settings"]
    assert settings["labeled_per_step"]["value"] == 0
