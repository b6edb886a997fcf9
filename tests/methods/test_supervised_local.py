"""Supervised local contrast beyond the contract: what it sums, which labels it may see, what it trains."""

from pathlib import Path

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

from nnunet_semicon import trainers
from nnunet_semicon.configuration.config import keys_of
from nnunet_semicon.configuration.cost import NetworkCost, network_cost
from nnunet_semicon.configuration.facts import Facts
from nnunet_semicon.configuration.needs import Needs
from nnunet_semicon.configuration.rules import plan_rows
from nnunet_semicon.configuration.run import RunConfig
from nnunet_semicon.data.batch import TwoStreamBatch, pixel_classes
from nnunet_semicon.experiments.file import read_sweep
from nnunet_semicon.losses.local_contrast import local_contrast, pixel_sets
from nnunet_semicon.losses.schedules import ema_decay
from nnunet_semicon.methods.local_term import LocalConfig, derive, pixel_contrast
from nnunet_semicon.methods.negatives import PATIENCE
from nnunet_semicon.methods.supervised_local_pretrain import other_intensities
from nnunet_semicon.networks.taps import FeatureTaps, decoder_tap
from tests.harness import (
    SPLIT,
    capture_gradients,
    configure,
    make_trainer,
    poison_labels,
    prepare,
    run_until,
    scalars_of,
    started,
    step,
    without_supervision,
)

JOINT = "nnUNetTrainerSupervisedLocal"
STAGE = "nnUNetTrainerSupervisedLocalPretrain"
CONTROL = "nnUNetTrainerSupervisedControl"
SWEEP = Path(__file__).parents[2] / "docs" / "sweeps" / "supervised_local.yaml"


def features_of(trainer, images, level=0):
    """Logits and the map at a level of the decoder, without the trainer's own taps."""
    caught = {}
    stage = trainer.plain_network.decoder.stages[-1 - level]
    hook = stage.register_forward_hook(lambda module, inputs, output: caught.update(map=output))
    with torch.no_grad():
        logits = trainer.plain_network(images)
    hook.remove()
    trainer.student.taps.take()
    return logits, caught["map"]


@pytest.mark.parametrize("values", [{}, {"form": "hu_eq2", "sampling": "block", "block_size": 5}, {"stride": 3}])
def test_loss_is_supervised_plus_weighted_local_contrast(training, values):
    configure(training, "local", "2d_short", lambda_local=0.7, **values)
    trainer = started(JOINT, "local")
    batch = TwoStreamBatch.from_dict(next(trainer.dataloader_train))
    logits, maps = features_of(trainer, batch.image)
    config, local = trainer.resolved.config, trainer.method.local
    sampling = values.get("sampling", local.config.sampling)
    size = {"stride": local.size, "block": values.get("block_size"), "exact": 1}[sampling]
    vectors, labels = pixel_sets(maps, batch.target[0][:, 0].long(), sampling, size)
    with torch.no_grad():
        contrast = local_contrast(local.heads[0](vectors), labels, 3, config.temperature, values.get("form", "supcon"))
        expected = trainer.loss(logits, batch.target) + 0.7 * contrast
    assert contrast > 0
    assert float(step(trainer, vars(batch))["loss"]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("parent", ["2d", "3d_fullres"])
def test_every_level_with_a_weight_trains_network_and_head(training, monkeypatch, parent):
    configure(training, f"{parent}_levels", f"{parent}_short", level_weight={"0": 0.0, "1": 1.0, "2": 0.5})
    trainer = started(JOINT, f"{parent}_levels")
    assert trainer.student.taps.names == (decoder_tap(1), decoder_tap(2))
    without_supervision(trainer, monkeypatch)
    gradients = capture_gradients(trainer, monkeypatch)
    step(trainer)
    for part in (
        "network.encoder.stages.0",
        "network.decoder.stages.0",
        "method.local.heads.0",
        "method.local.heads.1",
    ):
        assert sum(float(g.abs().sum()) for name, g in gradients.items() if name.startswith(part)) > 0, part
    last = len(trainer.plain_network.decoder.stages) - 1
    assert not any(g.any() for name, g in gradients.items() if name.startswith(f"network.decoder.stages.{last}"))


def test_a_level_that_the_decoder_does_not_have_is_one_sentence(training):
    configure(training, "deep", "2d_short", level_weight={"3": 1.0})
    with pytest.raises(SystemExit, match=r"3 stages below the full resolution, but the decoder has .* choose a level"):
        make_trainer(JOINT, "deep").initialize()
    configure(training, "none", "2d_short", level_weight={"0": 0.0})
    with pytest.raises(SystemExit, match="no level of the decoder has a weight above 0"):
        make_trainer(JOINT, "none").initialize()


def test_pseudo_labels_are_those_the_teacher_is_confident_of(training, monkeypatch):
    configure(training, "pseudo", "2d_short", pseudo_labels=True, confidence=0.5)
    trainer = started(JOINT, "pseudo")
    method = trainer.method
    assert trainer.rows.labeled == trainer.rows.images == trainer.configuration_manager.batch_size
    logits = torch.randn(2, 3, 8, 8) * 2
    monkeypatch.setattr(method.teacher, "forward", lambda images: logits)
    probabilities = torch.softmax(logits, dim=1)
    classes = method._pseudo_labels(torch.zeros(2, 1, 8, 8))
    confident = probabilities.max(dim=1).values >= 0.5
    assert confident.any()
    assert not confident.all()
    assert torch.equal(classes[confident], probabilities.argmax(dim=1)[confident])
    assert (classes[~confident] == -1).all()
    method.has_regions = True
    classes = method._pseudo_labels(torch.zeros(2, 1, 8, 8))
    regions = torch.sigmoid(logits) > 0.5
    assert torch.equal(classes, (regions * torch.tensor([1, 2, 4])[:, None, None]).sum(dim=1))  # all are confident


def test_with_pseudo_labels_unlabeled_images_reach_the_student_and_nothing_the_teacher(training, monkeypatch):
    configure(training, "pseudo", "2d_short", pseudo_labels=True, confidence=0.0)
    losses = []
    for change in (0.0, 1.0):
        trainer = started(JOINT, "pseudo")
        without_supervision(trainer, monkeypatch)
        batch = next(trainer.dataloader_train)
        batch["image"][batch["n_labeled"] :] += change * torch.linspace(-1, 1, batch["image"].shape[-1])
        teacher = trainer.method.teacher
        for own, student in zip(teacher.parameters(), trainer.plain_network.parameters(), strict=True):
            assert torch.equal(own, student)
        seen, predict = [], teacher.forward
        monkeypatch.setattr(teacher, "forward", lambda images, p=predict, s=seen: s.append(images) or p(images))
        torch.manual_seed(0)
        losses.append(float(step(trainer, batch)["loss"]))
        assert torch.equal(seen[0], batch["image"][batch["n_labeled"] :])  # the weak view
        assert all(p.grad is None for p in teacher.parameters())
        step(trainer)
        before = [p.clone() for p in teacher.parameters()]
        step(trainer)
        decay = ema_decay(2, 0.99)
        for old, new, student in zip(before, teacher.parameters(), trainer.plain_network.parameters(), strict=True):
            torch.testing.assert_close(new, decay * old + (1 - decay) * student)
    assert losses[0] != losses[1]


@pytest.mark.parametrize("name", [JOINT, STAGE])
def test_a_run_that_never_has_anything_to_contrast_stops_with_one_sentence(training, name):
    trainer = started(name, "2d_short")
    trainer.num_iterations_per_epoch = 4 * PATIENCE
    batch = next(trainer.dataloader_train)
    batch["target"] = [torch.zeros_like(scale) for scale in batch["target"]]
    for _ in range(PATIENCE - 1):
        step(trainer, batch)
    with pytest.raises(SystemExit, match="level 0 of the decoder has had no negative pair for 50 steps"):
        step(trainer, batch)


def test_the_stage_trains_encoder_and_decoder_with_adam_and_segments_nothing(training):
    trainer = started(STAGE, "2d_short")
    before = {name: tensor.clone() for name, tensor in trainer.plain_network.state_dict().items()}
    for _ in range(2):
        step(trainer)
    moved = {
        name for name, tensor in trainer.plain_network.state_dict().items() if not torch.equal(before[name], tensor)
    }
    assert any(name.startswith("encoder.stages.0") for name in moved)
    assert any(name.startswith("decoder.stages") for name in moved)
    assert type(trainer.optimizer) is torch.optim.Adam
    assert (trainer.initial_lr, trainer.weight_decay) == (1e-4, 1e-4)
    assert trainer.rows.labeled * 2 == trainer.rows.student_rows == 4


@pytest.mark.parametrize(("level", "frozen_stages"), [(0, 0), (1, 1)])
def test_the_stage_leaves_alone_what_no_loss_reaches(training, level, frozen_stages):
    """Zero gradients would not: Adam's weight decay alone moves every weight by the learning rate, towards zero."""
    configure(training, "level", "2d_short", **{"level_weight": {"0": 0.0, str(level): 1.0}})
    trainer = started(STAGE, "level")
    decoder = trainer.plain_network.decoder
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    for _ in range(2):
        step(trainer)
    moved = {name for name, tensor in decoder.state_dict().items() if not torch.equal(before[name], tensor)}
    reached = len(decoder.stages) - frozen_stages
    for part in ("stages", "transpconvs"):
        expected = {name for name in before for i in range(reached) if name.startswith(f"{part}.{i}.")}
        weights = {name for name in expected if name.endswith("weight")}
        assert weights <= {name for name in moved if name.startswith(part)} <= expected
    assert not any(name.startswith("seg_layers") for name in moved)
    frozen = {name for name, p in decoder.named_parameters() if not p.requires_grad}  # DDP would wait for gradients
    assert not frozen & moved
    assert len(frozen) == len([p for p in trainer.network.parameters() if p.grad is None])


def test_the_stage_sees_labels_of_training_cases_only(tiny, tmp_path, monkeypatch):
    """The reference code contrasts with the labels of validation and test scans here."""
    copy = prepare(tiny.fresh(tmp_path))
    copy.use(monkeypatch)

    def losses() -> list[float]:
        trainer = started(STAGE, "2d_short")
        batches = [next(trainer.dataloader_train) for _ in range(3)]
        assert {case for batch in batches for case in batch["case"]} <= set(SPLIT["train"])
        return [float(step(trainer, batch)["loss"]) for batch in batches]

    clean = losses()
    folder = copy.preprocessed_dataset / "nnUNetPlans_2d"
    poison_labels(folder, SPLIT["unlabeled"])
    poison_labels(folder, SPLIT["val"], locations=False)  # the validation loader reads them
    assert losses() == clean
    poison_labels(folder, SPLIT["train"], locations=False)
    assert losses() != clean


def test_the_stage_validates_on_the_contrast_of_validation_cases(training, monkeypatch):
    trainer = run_until(make_trainer(STAGE, "2d_short"), None, monkeypatch)
    rows = scalars_of(trainer)
    log = trainer.logger.local_logger.my_fantastic_logging
    assert log["mean_fg_dice"] == [pytest.approx(-row["val_loss"], rel=1e-5) for row in rows]
    assert all(row["val_loss"] > 0 for row in rows)
    batch = next(trainer.dataloader_val)
    assert set(batch["case"]) <= set(SPLIT["val"])
    assert len(batch["target"][0]) == batch["n_labeled"] == len(batch["image"])


def test_fine_tuning_starts_from_encoder_and_decoder_of_the_stage(training, monkeypatch):
    stage = run_until(make_trainer(STAGE, "2d_short"), None, monkeypatch)
    configure(training, "tuned", "2d_short", seed=5)
    trainer = make_trainer(CONTROL, "tuned")
    trainer.initialize()
    load_pretrained_weights(trainer.network, f"{stage.output_folder}/checkpoint_final.pth")
    loaded, expected = trainer.plain_network.state_dict(), stage.plain_network.state_dict()
    for name, tensor in loaded.items():
        if ".seg_layers." not in name:
            assert torch.equal(tensor, expected[name]), name


def test_two_views_show_the_same_voxels_with_other_intensities():
    torch.manual_seed(0)
    image = torch.randn(16, 2, 12, 12)
    image[:, :, :3] += 10
    other = other_intensities(image)
    assert other.shape == image.shape
    changed = ((other - image).abs() > 1e-5).flatten(2).any(dim=2)
    assert changed.any()
    assert not changed.all()
    assert (other[:, :, :3].mean(dim=(2, 3)) > other[:, :, 3:].mean(dim=(2, 3))).all()
    constant = other_intensities(torch.ones(4, 1, 5, 5))
    assert constant.isfinite().all()


def test_classes_of_pixels():
    labels = torch.tensor([[[[0, 1], [2, 3]]]], dtype=torch.int16)
    assert pixel_classes([labels, labels[..., ::2]], False, None).tolist() == [[[0, 1], [2, 3]]]
    assert pixel_classes(labels, False, 3).tolist() == [[[0, 1], [2, -1]]]
    regions = torch.tensor([[[[0, 1], [1, 0]], [[0, 0], [1, 1]]]]).bool()
    assert pixel_classes(regions, True, None).tolist() == [[[0, 1], [3, 2]]]
    ignored = torch.tensor([[[[False, True], [False, False]]]])
    assert pixel_classes([torch.cat([regions, ignored], dim=1)], True, 9).tolist() == [[[0, -1], [3, 2]]]


def test_labels_go_to_the_resolution_of_a_map_by_nearest_neighbor(training):
    configure(training, "half", "2d_short", level_weight={"0": 0.0, "1": 1.0}, sampling="exact")
    local = started(JOINT, "half").method.local
    classes = torch.zeros(1, 8, 8, dtype=torch.int64)
    classes[:, :4] = 1
    classes[:, 4:, 4:] = 2
    maps = torch.randn(1, local.heads[0][0].in_features, 4, 4)
    with torch.no_grad():
        expected = local_contrast(local.heads[0](maps[0].flatten(1).T[None]), classes[:, ::2, ::2].flatten(1), 3, 0.1)
        assert float(local({decoder_tap(1): maps}, classes)) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("parent", ["2d", "3d_fullres"])
def test_cost_of_the_planned_network_is_what_torch_counts(training, parent):
    from torch.utils.flop_counter import FlopCounterMode

    trainer = make_trainer(CONTROL, f"{parent}_short")
    trainer.initialize()
    planned = network_cost(trainer.configuration_manager.configuration)
    trainer.network.decoder.deep_supervision = False
    patch = torch.zeros(1, 1, *trainer.configuration_manager.patch_size)
    names = [decoder_tap(level) for level in range(len(planned.shapes))]
    taps = FeatureTaps(trainer.network, names)
    with FlopCounterMode(display=False) as counter:
        trainer.network(patch).sum().backward()
    assert planned.flops == pytest.approx(counter.get_total_flops(), rel=0.1)
    maps = taps.take()
    assert tuple(tuple(maps[name].shape[2:]) for name in names) == planned.shapes


def test_exact_where_it_costs_no_more_than_the_network():
    network = NetworkCost(((64, 64), (32, 32)), flops=6 * 1000**2 * 128.0)

    def chosen(images: int, level: int = 0) -> tuple[str, int]:
        rule = pixel_contrast(images, level, 128, network)
        return rule["sampling"].value, rule["stride"].value

    assert chosen(1) == ("stride", 3)  # 22 x 22 pixels, and 32 x 32 are more than 1000
    assert chosen(1, level=1) == ("stride", 2)
    assert chosen(4) == ("stride", 3)
    assert pixel_contrast(1, 1, 100, network)["sampling"].value == "exact"
    unknown = pixel_contrast(1, 0, 128, NetworkCost(((64, 64),), 0.0))
    assert (unknown["sampling"].value, unknown["stride"].value) == ("stride", 4)
    rows = plan_rows(1, 1, None, Needs(), None)
    facts = Facts(None, (), {}, rows, network, steps=4)
    filled = derive(LocalConfig(sampling="exact", stride=1), facts, images=1)
    assert (filled.config.sampling, filled.config.stride, filled.reasons) == ("exact", 1, {})


def test_the_sweep_of_the_three_stages_names_trainers_and_keys_that_exist():
    sweep = read_sweep(SWEEP)
    stages = sweep.stages
    for stage in stages.values():
        known = {*keys_of(getattr(trainers, stage.trainer).method_class.Config), *keys_of(RunConfig), "batch_size"}
        assert set(stage.set) <= known, stage.name
    chain = ["from_global_exact"]
    while stages[chain[-1]].start:
        chain.append(stages[chain[-1]].start)
    assert [stages[name].trainer for name in chain] == [CONTROL, STAGE, "nnUNetTrainerSimCLRPretrain"]
