"""What every trainer of the catalogue must do; a new trainer is tested by existing."""

import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_semicon import trainers
from nnunet_semicon.configuration.config import keys_of
from nnunet_semicon.data.batch import TwoStreamBatch
from nnunet_semicon.networks import swin_unet
from nnunet_semicon.workspace import DEFAULT_TRAINER
from tests import ddp
from tests.harness import (
    CONFIGURATIONS,
    LONG_PAIRS,
    MECHANISMS,
    NAMES,
    WITH_UNLABELED,
    capture_gradients,
    configure,
    differing,
    encoder_inputs,
    make_trainer,
    mechanisms_of,
    poison_labels,
    prepare,
    run_until,
    scalars_of,
    started,
    state_of,
    step,
    trusting,
    without_supervision,
)
from tests.tiny import read_json, write_json

README = Path(__file__).resolve().parents[1] / "README.md"
PAGES = README.parent / "docs" / "methods"

every_trainer = pytest.mark.parametrize("name", NAMES)
every_semi_trainer = pytest.mark.parametrize("name", WITH_UNLABELED)
every_dimension = pytest.mark.parametrize("parent", CONFIGURATIONS)
every_mechanism = pytest.mark.parametrize(("name", "parent"), LONG_PAIRS)


@every_trainer
@every_dimension
def test_a_step_changes_the_student_and_fits_the_plan(training, name, parent):
    trainer = started(name, f"{parent}_short")
    before = state_of(trainer)
    batch = next(trainer.dataloader_train)
    loss = step(trainer, batch)["loss"]
    trainer.current_epoch = 1  # past a warm-up, in which a method may leave unlabeled rows out
    entered = encoder_inputs(trainer)
    step(trainer)  # in the first one, a queue may still be empty

    assert np.isfinite(loss)
    assert any(key.startswith("network.") for key in differing(before, {key: state_of(trainer)[key] for key in before}))
    planned = trainer.configuration_manager.batch_size
    streams = TwoStreamBatch.from_dict(batch)
    assert [len(rows) for rows in entered] == [trainer.rows.student_rows]
    assert trainer.rows.student_rows - trainer.rows.extra_rows <= planned
    assert streams.n_labeled == trainer.rows.labeled
    assert len(streams.unlabeled) == trainer.rows.images == streams.views.shape[1]
    assert streams.image.shape[2:] == tuple(trainer.configuration_manager.patch_size)
    assert len(streams.case) == len(streams.image)


@every_semi_trainer
@every_dimension
def test_unlabeled_rows_teach_the_student_and_nothing_reaches_a_teacher(training, monkeypatch, name, parent):
    monkeypatch.setattr(swin_unet, "DROP_PATH", 0.0)  # in a small batch a whole branch may be left out by chance
    trainer = started(name, trusting(name, f"{parent}_short", training))
    step(trainer)  # a teacher equal to the student, and an empty queue, are special
    without_supervision(trainer, monkeypatch)
    gradients = capture_gradients(trainer, monkeypatch)
    entered = encoder_inputs(trainer)
    trainer.current_epoch = 1  # past the beginning of every ramp
    batch = next(trainer.dataloader_train)
    step(trainer, batch)

    (rows,), n = entered, batch["n_labeled"]
    if trainer.resolved.needs.paired:
        n = 0  # every row may show unlabeled content
    assert torch.equal(rows[:n], batch["image"][:n])
    # no layer mixes rows: what reaches an unlabeled row comes from a term that compares this row
    reached = rows.grad[n:].flatten(1).abs().sum(dim=1)
    assert len(reached) > 0
    assert (reached > 0).all()
    assert sum(float(g.abs().sum()) for key, g in gradients.items() if key.startswith("network.encoder")) > 0
    for key, parameter in trainer.method.named_parameters():
        if key in coarse_heads(trainer.method):
            continue
        if parameter.requires_grad:
            assert gradients[f"method.{key}"].abs().sum() > 0, f"{key} is never trained"
        else:
            assert parameter.grad is None


@every_semi_trainer
def test_another_unlabeled_image_gives_another_loss(training, monkeypatch, name):
    losses = []
    for change in (0.0, 1.0):
        trainer = started(name, trusting(name, "2d_short", training))
        without_supervision(trainer, monkeypatch)
        trainer.current_epoch = 1
        batch = next(trainer.dataloader_train)
        gradient = change * torch.linspace(-1, 1, batch["views"].shape[-1])
        batch["views"] = batch["views"] + gradient
        if len(batch["views"]) == 0:  # one geometry, that beside the labeled rows
            batch["image"][batch["n_labeled"] :] += gradient
        torch.manual_seed(0)
        losses.append(float(step(trainer, batch)["loss"]))
    assert losses[0] != losses[1]


@every_trainer
@every_dimension
def test_labels_of_unlabeled_cases_are_never_read(tiny, tmp_path, monkeypatch, name, parent):
    copy = prepare(tiny.fresh(tmp_path))
    copy.use(monkeypatch)
    shutil.rmtree(copy.raw_dataset / "imagesUn")  # was preprocessed without masking
    # masking by the nonzero region is the one thing that looks at the stored segmentation
    configure(copy, "masked", f"{parent}_short", seed=3)
    plans = read_json(copy.plans_file)
    plans["configurations"]["masked"]["use_mask_for_norm"] = [True]
    write_json(copy.plans_file, plans)

    def losses() -> list[float]:
        trainer = started(name, "masked")
        return [float(step(trainer)["loss"]) for _ in range(3)]

    clean = losses()
    assert clean == losses(), "the run itself is not reproducible"
    identifier = "nnUNetPlans_2d" if parent == "2d" else "nnUNetPlans_3d_fullres"
    poison_labels(copy.preprocessed_dataset / identifier, ["patient002_frame01", "patient002_frame02"])
    assert clean == losses()


@every_mechanism
def test_resumed_equals_uninterrupted(training, monkeypatch, name, parent):
    configuration = f"{parent}_resume"
    configure(training, configuration, f"{parent}_short", num_epochs=3, save_every=2)

    whole = state_of(run_until(make_trainer(name, configuration), None, monkeypatch))
    run_until(make_trainer(name, configuration), 2, monkeypatch)
    resumed = make_trainer(name, configuration, continue_training=True)
    resumed.load_checkpoint(f"{resumed.output_folder}/checkpoint_latest.pth")
    assert resumed.current_epoch == 2
    halfway = state_of(resumed)
    run_until(resumed, None, monkeypatch)

    assert differing(whole, state_of(resumed)) == []
    assert differing(whole, halfway), "the comparison compares nothing"
    assert [row["epoch"] for row in scalars_of(resumed)] == [0, 1, 2]


@every_mechanism
def test_two_processes_train_one_model(training, name, parent):
    ranks = ddp.train(name, f"{parent}_short", steps=3)

    assert ranks[0]["cases"] != ranks[1]["cases"], "both ranks drew the same images"
    assert differing(ranks[0]["state"], ranks[1]["state"]) == []
    assert differing(ranks[0]["start"], ranks[0]["state"]), "nothing was trained"


@every_trainer
@every_dimension
def test_a_finished_run_has_live_scalars_and_a_checkpoint_for_the_stock_predictor(training, monkeypatch, name, parent):
    trainer = run_until(make_trainer(name, trusting(name, f"{parent}_short", training)), None, monkeypatch)

    rows = scalars_of(trainer)
    assert len(rows) == 2
    for scalar in ("loss", *trainer.method.scalar_names):
        values = [row[scalar] for row in rows]
        assert all(math.isfinite(v) for v in values), scalar
        # a network that is hardly trained may predict a class nowhere
        assert any(v != 0 for v in values) or scalar.startswith("kept"), f"{scalar} is always zero"

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
    stored = torch.load(f"{trainer.output_folder}/checkpoint_final.pth", weights_only=False)
    assert set(stored) - {"semicon"} == STOCK_KEYS
    assert stored["network_weights"].keys() == predictor.network.state_dict().keys()
    assert all(t.device.type == "cpu" for t in tensors_in(stored))
    patch = torch.zeros(1, 1, *trainer.configuration_manager.patch_size)
    assert predictor.network(patch).shape[1] == 3


def test_the_fast_tier_shows_every_mechanism_and_the_slow_one_every_trainer(training):
    mechanisms = {}
    for name in NAMES:
        trainer = make_trainer(name, "2d_short")
        trainer.initialize()
        mechanisms[name] = mechanisms_of(trainer)
    fast = {name for name, _ in MECHANISMS.values()}
    assert set.union(*mechanisms.values()) == set.union(*(mechanisms[name] for name in fast))

    slow = {pair.values for pair in LONG_PAIRS if pair.marks}
    assert {name for name, _ in slow} == set(NAMES)
    assert slow | set(MECHANISMS.values()) == {(name, parent) for name in NAMES for parent in CONFIGURATIONS}


@every_trainer
def test_every_hyper_parameter_stands_in_the_page_of_the_method(name):
    undocumented = set(keys_of(getattr(trainers, name).method_class.Config)) - documented_keys(PAGES / page_of(name))
    assert not undocumented, f"{page_of(name)} does not say what {undocumented} mean"


def test_every_trainer_is_in_one_group():
    grouped = [name for names in trainers.GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(trainers.__all__)
    assert trainers.GROUPS["Recommended"] == (DEFAULT_TRAINER,)
    labeled_alone = {name for name in NAMES if not getattr(trainers, name).method_class.needs.views}
    assert labeled_alone >= set(trainers.GROUPS["Controls: labeled scans alone"])
    pretrained = {name for name in NAMES if getattr(trainers, name).method_class.needs.stage == "pretrain"}
    assert pretrained == set(trainers.GROUPS["Pre-training"])


def test_the_readme_lists_the_trainers_in_their_groups():
    listed = re.findall(r"^\| (?:\*\*(.+)\*\*|`(nnUNetTrainer\w+)`) \|", README.read_text(), re.MULTILINE)
    expected = [line for title, names in trainers.GROUPS.items() for line in (title, *names)]
    assert [title or name for title, name in listed] == expected


def page_of(name: str) -> str:
    """The page of a trainer in ``docs/methods``, as the table of trainers in README.md links it."""
    (link,) = re.findall(rf"^\| `{name}` \|.*\(docs/methods/(\w+\.md)\) \|$", README.read_text(), re.MULTILINE)
    return link


def documented_keys(page: Path, follow: bool = True) -> set[str]:
    """Keys with a meaning in the table of hyper-parameters of a page, and of the pages that this section links."""
    (section,) = re.findall(r"^## Hyper-parameters$(.*?)^## ", page.read_text(), re.MULTILINE | re.DOTALL)
    keys = set()
    for cells in re.findall(r"^\|(`[^|]+)\|[^|]*\|([^|]*)\|", section.replace("| `", "|`"), re.MULTILINE):
        if cells[1].strip():
            keys |= set(re.findall(r"`(\w+)`", cells[0]))
    if follow:
        for link in re.findall(r"\]\((\w+\.md)[)#]", section):
            keys |= documented_keys(page.parent / link, follow=False)
    return keys


def coarse_heads(method) -> set[str]:
    """Deep-supervision heads of a second network below the full resolution: they learn from labels alone."""
    heads = [re.fullmatch(r"(.*\.seg_layers\.)(\d+)\.\w+", key) for key, _ in method.named_parameters()]
    last = max((int(head[2]) for head in heads if head), default=0)
    return {head[0] for head in heads if head and int(head[2]) < last}


STOCK_KEYS = {
    "network_weights",
    "optimizer_state",
    "grad_scaler_state",
    "logging",
    "_best_ema",
    "current_epoch",
    "init_args",
    "trainer_name",
    "inference_allowed_mirroring_axes",
}


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from tensors_in(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from tensors_in(entry)
