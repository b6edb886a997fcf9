"""SP-Con beyond the contract: which terms train what, gamma, the queue, the stop without negatives."""

import pytest
import torch

from nnunet_semicon.methods.negatives import PATIENCE
from nnunet_semicon.networks.taps import BOTTLENECK
from tests.harness import capture_gradients, configure, make_trainer, started, step, without_supervision

NAME = "nnUNetTrainerSPCon"


@pytest.mark.parametrize("label", ["position", "patient"])
@pytest.mark.parametrize("parent", ["2d", "3d_fullres"])
def test_each_meta_label_trains_the_encoder_at_the_planned_batch_size(training, monkeypatch, parent, label):
    other = {"position": "patient", "patient": "position"}[label]
    configuration = f"{parent}_{label}"
    configure(
        training,
        configuration,
        f"{parent}_short",
        num_epochs=20,
        lambda_reg=0.0,
        **{"lambda": {label: 1.0, other: 0.0}},
    )
    trainer = started(NAME, configuration)
    assert trainer.configuration_manager.batch_size == {"2d": 4, "3d_fullres": 2}[parent]
    for _ in range(6):  # fills the queue: one scan in two views has no negatives
        step(trainer)
    without_supervision(trainer, monkeypatch)
    gradients = capture_gradients(trainer, monkeypatch)
    norms = []
    for _ in range(4):
        step(trainer)
        norms.append(sum(float(g.norm()) for name, g in gradients.items() if name.startswith("network.encoder")))
    assert max(norms) > 0
    assert trainer.method.contrast.labels == (label,)
    assert "method.contrast.heads.projectors.0.mlp.0.weight" in gradients


def test_3d_at_batch_size_two_says_what_it_costs(training):
    trainer = started(NAME, "3d_fullres_short")
    assert (trainer.rows.labeled, trainer.rows.images, trainer.rows.extra_rows) == (2, 2, 4)
    assert trainer.method.config.queue_size == 96


def test_gamma_grows_from_the_loss_of_an_untrained_embedding_to_the_bound(training):
    trainer = started(NAME, "2d_short")
    config = trainer.method.config
    assert 0 < config.gamma_start < config.gamma_end
    step(trainer)
    first = trainer.scalars.pop_means()["gamma"]
    assert first == pytest.approx(config.gamma_start)
    trainer.current_epoch = 1
    trainer._iteration = 1  # three quarters of the run
    step(trainer)
    expected = first + (config.gamma_end - first) * 0.75**0.5
    assert trainer.scalars.pop_means()["gamma"] == pytest.approx(expected, rel=1e-5)


def test_queue_holds_teacher_embeddings_with_their_labels(training):
    trainer = started(NAME, "3d_fullres_short")
    contrast = trainer.method.contrast
    queue = contrast.queues[contrast.labels.index("position")]
    assert (queue.labels == -1).all()
    step(trainer)
    with torch.no_grad():  # otherwise the teacher would still be almost the student
        for parameter in trainer.method.teacher.parameters():
            parameter.mul_(1.5)
    batch = next(trainer.dataloader_train)
    n = batch["n_labeled"]
    trainer.method.teacher(batch["image"][n:])
    features = trainer.method.teacher_taps.take()[BOTTLENECK]
    step(trainer, batch)
    # what the *teacher* sees: its features of the weak view, through its own projector
    pushed = slice(len(features), 2 * len(features))  # behind those of the first step
    torch.testing.assert_close(queue.embeddings[pushed], contrast.teacher_heads(features)["position"])
    assert torch.equal(queue.labels[pushed], batch["meta"]["position"])
    assert not queue.embeddings.requires_grad


def test_contrast_without_negatives_stops_the_run(training, monkeypatch):
    # one meta-label, no queue, one image in two views: every pair is positive
    rows = {"unlabeled_per_step": 1, "queue_size": 0}
    configure(training, "silent", "3d_fullres_short", **rows, **{"lambda": {"position": 1.0, "patient": 0.0}})
    trainer = started(NAME, "silent")
    batch = next(trainer.dataloader_train)
    trainer.num_iterations_per_epoch = 4 * PATIENCE
    for _ in range(PATIENCE - 1):
        step(trainer, batch)
    with pytest.raises(SystemExit, match=r"'position' has had no negative pair for 50 steps.*lambda.position=0"):
        step(trainer, batch)


@pytest.mark.parametrize("parent", ["2d", "3d_fullres"])
def test_embeddings_of_different_images_differ(training, parent):
    # after instance normalization, global averages are nearly the same for all images: contrast would teach nothing
    spread = {}
    for grid in (1, 2):
        configure(training, f"{parent}_grid{grid}", f"{parent}_short", pool_grid=grid, seed=0)
        trainer = started(NAME, f"{parent}_grid{grid}")
        images = torch.cat([next(trainer.dataloader_train)["image"] for _ in range(4)])
        with torch.no_grad():
            trainer.plain_network(images)
            z = trainer.method.contrast.heads(trainer.student.taps.take()[BOTTLENECK])["position"]
        z = torch.nn.functional.normalize(z, dim=1)
        spread[grid] = float(1 - (z @ z.T).mean())
    assert spread[2] > 2 * spread[1]


def test_projectors_learn_at_the_same_rate_whatever_the_weight_of_their_term(training):
    configure(training, "weights", "2d_short", num_epochs=20, **{"lambda": {"position": 1.0, "patient": 1e-4}})
    trainer = started(NAME, "weights")
    contrast = trainer.method.contrast
    heads = dict(zip(contrast.labels, contrast.heads.projectors, strict=True))
    before = {k: head.mlp[2].weight.detach().clone() for k, head in heads.items()}
    for _ in range(3):
        step(trainer)
    moved = {k: float((head.mlp[2].weight.detach() - before[k]).abs().mean()) for k, head in heads.items()}
    assert moved["patient"] == pytest.approx(moved["position"], rel=0.5)
    assert trainer.optimizers[1].param_groups[0]["lr"] == trainer.method.config.head_lr


def test_a_label_of_weight_zero_is_left_out(training):
    configure(training, "none", "2d_short", **{"lambda": {"position": 0.0, "patient": 0.0}})
    trainer = started(NAME, "none")
    assert trainer.method.contrast.labels == ()
    assert torch.isfinite(torch.tensor(float(step(trainer)["loss"])))


def test_a_patch_that_covers_the_axis_has_no_position(training):
    from nnunet_semicon.configuration.plans import write_plans
    from tests.tiny import read_json

    configure(training, "covering", "3d_fullres_short")
    plans = read_json(training.plans_file)
    plans["configurations"]["covering"]["patch_size"] = [12, 32, 32]
    write_plans(plans, training.plans_file)
    trainer = make_trainer(NAME, "covering")
    trainer.initialize()
    assert trainer.method.contrast.labels == ("patient",)
    assert "every center lies at one position" in trainer.resolved.settings["partitions"].reason
