"""PLGCL beyond the contract: what it sums, who labels whom, when the warm-up ends, every switch."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from nnunet_semicon import trainers
from nnunet_semicon.configuration.config import keys_of
from nnunet_semicon.data.batch import TwoStreamBatch, pixel_classes
from nnunet_semicon.losses.consistency import softmax_cross_entropy
from nnunet_semicon.losses.pairs import pairs_by_label
from nnunet_semicon.losses.patch_contrast import patch_contrast
from nnunet_semicon.losses.pseudo_label import class_probabilities
from nnunet_semicon.losses.schedules import ema_decay, sigmoid_rampup
from nnunet_semicon.losses.windows import Guidance, pooled
from nnunet_semicon.methods.base import finest
from nnunet_semicon.methods.patch_term import PATCHES
from tests import ddp
from tests.harness import (
    SPLIT,
    capture_gradients,
    configure,
    differing,
    make_trainer,
    run_until,
    scalars_of,
    started,
    state_of,
    step,
    without_supervision,
)

NAME = "nnUNetTrainerPLGCL"


def after_warmup(training, parent="2d", **values):
    """A trainer in the middle of its run, whose teacher is not its student."""
    configure(training, f"{parent}_plgcl", f"{parent}_short", num_epochs=10, **values)
    trainer = started(NAME, f"{parent}_plgcl")
    trainer.current_epoch = 4
    with torch.no_grad():
        for parameter in trainer.method.teacher.parameters():
            parameter.mul_(1.2)
    return trainer


def test_the_loss_is_the_sum_of_the_three_terms(training):
    trainer = after_warmup(training, lambda_reg=0.7, lambda_patch=0.3, rampup=0.4, temperature=0.15)
    method, network = trainer.method, trainer.plain_network
    batch = TwoStreamBatch.from_dict(next(trainer.dataloader_train))
    n = batch.n_labeled
    caught = {}
    with torch.no_grad():
        target = finest(method.teacher(batch.image))
        teacher_map = method.teacher_taps.take()[method.tap]
        hook = network.decoder.stages[-1].register_forward_hook(lambda m, i, o: caught.update(map=o))
        torch.manual_seed(5)
        strong = method.strong(batch.unlabeled)
        student = network(torch.cat([batch.labeled, strong]))
        hook.remove()
        trainer.student.taps.take()
        classes = torch.cat([batch.target[0][:, 0].long(), target[n:].argmax(dim=1)])
        patches = method.patches
        drawn = patches.draw(torch.softmax(target, dim=1), teacher_map, classes, patches.config.patches)
        vectors, labels = pooled(caught["map"], classes, 3, patches.grid, drawn)
        contrast = patch_contrast(patches.head(vectors), pairs_by_label(labels), 3, 0.15)
        supervised = trainer.loss([scale[:n] for scale in student], batch.target)
        regularization = softmax_cross_entropy(finest(student)[n:], target[n:])
    assert len(labels) == PATCHES
    assert set(labels.tolist()) == {0, 1, 2}
    assert contrast > 0
    weight = 0.7 * sigmoid_rampup(0.4 - 1 / 3, 0.4)
    torch.manual_seed(5)
    loss = float(step(trainer, vars(batch))["loss"])
    assert loss == pytest.approx(float(supervised + weight * regularization + 0.3 * contrast), rel=1e-5)


def test_the_warm_up_sees_labels_alone_and_ends_with_a_copy(training):
    configure(training, "warm", "2d_short", num_epochs=10, supervised_warmup=0.3)
    trainer = started(NAME, "warm")
    seen = []
    forward = trainer.plain_network.forward
    trainer.plain_network.forward = lambda x: seen.append(len(x)) or forward(x)
    method, n = trainer.method, trainer.rows.labeled
    for epoch in range(3):
        trainer.current_epoch = epoch
        trainer._iteration = 0
        for _ in range(2):
            step(trainer)
            for own, new in zip(method.teacher.parameters(), trainer.plain_network.parameters(), strict=True):
                assert torch.equal(own, new)
    assert seen == [n] * 6
    trainer.current_epoch, trainer._iteration = 3, 0
    step(trainer)
    step(trainer)
    before = [p.clone() for p in method.teacher.parameters()]
    step(trainer)
    assert seen[6:] == [n + trainer.rows.images] * 3
    decay = ema_decay(2, 0.99)
    for old, new, student in zip(before, method.teacher.parameters(), trainer.plain_network.parameters(), strict=True):
        torch.testing.assert_close(new, decay * old + (1 - decay) * student)


def test_without_a_warm_up_the_first_step_has_all_terms(training):
    configure(training, "cold", "2d_short", supervised_warmup=0.0)
    trainer = started(NAME, "cold")
    step(trainer)
    means = trainer.scalars.pop_means()
    assert means["contrast"] > 0
    assert means["self_training"] > 0


@pytest.mark.parametrize("parent", ["2d", "3d_fullres"])
@pytest.mark.parametrize("source", ["feature", "image"])
@pytest.mark.parametrize("guidance", get_args(Guidance))
def test_every_source_and_guidance_trains_the_encoder_by_the_contrast(training, monkeypatch, parent, source, guidance):
    trainer = after_warmup(training, parent, patch_source=source, guidance=guidance, lambda_reg=0.0)
    assert trainer.resolved.settings["queue_size"].value == (0 if source == "feature" else 32)
    for _ in range(8 if source == "image" else 1):
        step(trainer)  # fills the queue: a single window meets earlier ones only
    without_supervision(trainer, monkeypatch)
    gradients = capture_gradients(trainer, monkeypatch)
    step(trainer)
    for part in ("network.encoder.stages.0", "method.patches.head"):
        assert sum(float(g.abs().sum()) for key, g in gradients.items() if key.startswith(part)) > 0, part
    reached = any(g.any() for key, g in gradients.items() if key.startswith("network.decoder.stages"))
    assert reached == (source == "feature")


def test_windows_that_are_encoded_again_are_rows_of_the_student(training):
    trainer = after_warmup(training, patch_source="image", labeled_per_step=2, unlabeled_per_step=1)
    rows = trainer.rows
    assert (rows.labeled, rows.images, rows.student_rows) == (2, 1, 4)
    assert trainer.resolved.settings["patches"].value == 1
    seen = []
    forward = trainer.plain_network.forward
    trainer.plain_network.forward = lambda x: seen.append(len(x)) or forward(x)
    step(trainer)
    term = trainer.method.patches
    term.config = term.config.model_copy(update={"patches": 2})  # as on two ranks, all together
    step(trainer)
    assert seen == [4, 4]
    configure(training, "both", "2d_short", patch_source="image", patches=5)
    with pytest.raises(SystemExit, match="patches is 5, but with patch_source=image every window is a row"):
        make_trainer(NAME, "both").initialize()


def test_without_the_contrast_nothing_is_drawn(training, monkeypatch):
    configure(training, "no_contrast", "2d_short", lambda_patch=0.0)
    trainer = run_until(make_trainer(NAME, "no_contrast"), None, monkeypatch)
    assert trainer.method.patches is None
    assert not trainer.student.taps.names
    rows = scalars_of(trainer)
    assert all(set(row) == {"epoch", "loss", "supervised", "self_training"} for row in rows)
    assert rows[1]["self_training"] > 0
    arrays = dict(np.load(sorted((Path(trainer.output_folder) / "snapshots").iterdir())[-1]))
    assert set(arrays) == {"image", "pseudo_label", "entropy", "scan"}


def test_nothing_but_background_contributes_zero(training):
    trainer = after_warmup(training)
    term = trainer.method.patches
    classes = torch.zeros(2, 32, 32, dtype=torch.int64)
    features = torch.randn(2, 8, 32, 32, requires_grad=True)
    drawn = term.draw(torch.full((2, 3, 32, 32), 1 / 3), features.detach(), classes, term.config.patches)
    loss, _, labels = term(features, classes, drawn)
    assert set(labels.tolist()) == {0, -1}
    loss.backward()
    assert loss == 0
    assert not features.grad.any()


def test_a_run_without_a_second_class_is_stopped(training):
    configure(training, "alone", "2d_short", num_epochs=60, supervised_warmup=0.0)
    trainer = started(NAME, "alone")
    batch = next(trainer.dataloader_train)
    batch["target"] = [torch.zeros_like(t) for t in batch["target"]]
    trainer.method._classes = lambda batch, logits: torch.zeros_like(logits[:, 0], dtype=torch.int64)
    for number in range(49):
        trainer.current_epoch, trainer._iteration = divmod(number, 2)
        step(trainer, dict(batch))
    with pytest.raises(SystemExit, match="the contrastive term of windows has had no negative pair for 50 steps"):
        step(trainer, dict(batch))


def test_the_queue_remembers_windows_of_earlier_steps(training):
    trainer = after_warmup(training, queue_size=50)
    step(trainer)
    embeddings, labels = trainer.method.patches.queues.bank
    assert embeddings.shape == (150, 128)
    assert sorted(set(labels.tolist())) == [-1, 0, 1, 2]  # 128 windows of three classes leave places free
    assert not embeddings.requires_grad
    step(trainer)
    assert (trainer.method.patches.queues.bank[1] >= 0).all()


def test_regions_are_classes_by_their_combination():
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    combined = class_probabilities(logits, True)
    torch.testing.assert_close(combined.sum(dim=1), torch.ones(2, 4, 5))
    assert torch.equal(combined.argmax(dim=1), pixel_classes(torch.sigmoid(logits) > 0.5, True, None))
    region = torch.sigmoid(logits[:, 1])
    members = [code for code in range(8) if code >> 1 & 1]
    torch.testing.assert_close(combined[:, members].sum(dim=1), region)
    torch.testing.assert_close(class_probabilities(logits.half(), False), torch.softmax(logits.half().float(), dim=1))


@pytest.mark.parametrize("parent", ["2d", pytest.param("3d_fullres", marks=pytest.mark.slow)])
def test_pictures_of_three_unlabeled_cases_at_five_points(training, monkeypatch, parent):
    configure(training, f"{parent}_shown", f"{parent}_short", num_epochs=5, num_iterations_per_epoch=1)
    trainer = run_until(make_trainer(NAME, f"{parent}_shown"), None, monkeypatch, pictures=True)
    folder = Path(trainer.output_folder)
    files = sorted((folder / "snapshots").iterdir())
    assert [path.name for path in files] == [f"pseudo_labels_epoch{epoch:04d}.npz" for epoch in range(1, 6)]
    assert (folder / "pseudo_labels.png").stat().st_size > 10_000
    assert len(trainer.gallery.case) == 3
    assert not set(trainer.gallery.case) & {*SPLIT["train"], *SPLIT["val"]}
    arrays = dict(np.load(files[-1]))
    size = tuple(trainer.configuration_manager.patch_size)
    assert arrays["image"].shape == arrays["pseudo_label"].shape == arrays["entropy"].shape == (3, *size)
    assert set(np.unique(arrays["pseudo_label"])) <= {0, 1, 2}
    assert arrays["entropy"].min() >= 0
    assert arrays["entropy"].max() <= 1
    assert arrays["windows"].shape == (3, PATCHES, len(size))
    settings = json.loads((folder / "semicon_config.json").read_text())["settings"]
    assert settings["window"]["reason"] == f"{' x '.join(str(side // 2) for side in size)} voxels"


def test_a_resumed_run_with_a_queue_goes_on_as_if_nothing_had_happened(training, monkeypatch):
    values = {"queue_size": 16, "supervised_warmup": 0.25, "num_epochs": 4, "save_every": 2}
    configure(training, "queued", "2d_short", **values)
    whole = state_of(run_until(make_trainer(NAME, "queued"), None, monkeypatch))
    run_until(make_trainer(NAME, "queued"), 2, monkeypatch)
    resumed = make_trainer(NAME, "queued", continue_training=True)
    resumed.load_checkpoint(f"{resumed.output_folder}/checkpoint_latest.pth")
    run_until(resumed, None, monkeypatch)
    assert differing(whole, state_of(resumed)) == []


def test_the_ablations_of_the_poster_are_settings():
    keys = keys_of(trainers.nnUNetTrainerPLGCL.method_class.Config).keys()
    assert keys >= {"guidance", "supervised_warmup", "lambda_patch", "lambda_reg", "queue_size"}


def test_with_several_processes_the_head_rests_during_the_warm_up_too(training):
    """It has no gradient then; with zeros in its place, weight decay would shrink it, which it does not on one GPU."""
    configure(training, "warm", "2d_short", supervised_warmup=0.9)
    ranks = ddp.train(NAME, "warm", steps=1)
    head = {name for name in ranks[0]["state"] if ".patches.head." in name}
    moved = set(differing(ranks[0]["start"], ranks[0]["state"]))
    assert head
    assert moved
    assert not head & moved
