"""How the rows of a step are spent: on real plans of few and many labeled scans, by memory, ranks and a resume."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunet_semicon import trainers
from nnunet_semicon.cli.main import main
from nnunet_semicon.configuration.cost import network_cost
from nnunet_semicon.configuration.needs import Needs
from nnunet_semicon.configuration.resolved import Resolved, resolve_run
from nnunet_semicon.configuration.rules import BYTES_PER_VALUE, plan_rows, share_of, too_large
from nnunet_semicon.errors import UserError
from nnunet_semicon.training.memory import memory_of, smallest_over_ranks
from scripts.make_self_configuration import example_meta, read_example, resolved
from tests import ddp
from tests.harness import configure, make_trainer, run_until, started, step
from tests.tiny import read_json, write_json

CONTROL, TEACHER, SPCON = "nnUNetTrainerSupervisedControl", "nnUNetTrainerMeanTeacher", "nnUNetTrainerSPCon"
STAGE = "nnUNetTrainerSPConPretrain"
JOINT = Needs(views=1, student_views=1)
TWO_VIEWS = Needs(views=1, student_views=2)
SAMPLED = Needs(views=1, student_views=2, sample_scans=True)
PAIRED = Needs(views=1, student_views=1, paired=True)
TWICE = Needs(labeled_views=2)
PRETRAINED = Needs(views=1, student_views=2, sample_scans=True, stage="pretrain")


# --- the rule ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needs", "labeled", "unlabeled", "fits", "expected"),
    [
        pytest.param(JOINT, None, None, True, (32, 32, 64), id="as many unlabeled images as labeled ones"),
        pytest.param(JOINT, None, None, False, (16, 16, 32), id="the planned rows are shared"),
        pytest.param(JOINT, 16, None, True, (16, 16, 32), id="16 + 16"),
        pytest.param(JOINT, 16, None, False, (16, 16, 32), id="16 + 16 on any GPU"),
        pytest.param(JOINT, 4, None, True, (4, 4, 8), id="few labeled images"),
        pytest.param(JOINT, 4, None, False, (4, 4, 8), id="fewer than fit are not made more"),
        pytest.param(JOINT, 24, None, False, (24, 8, 32), id="what labeled images leave"),
        pytest.param(JOINT, None, 8, True, (32, 8, 40), id="unlabeled images alone"),
        pytest.param(JOINT, None, 8, False, (32, 8, 40), id="the user decides, not the memory"),
        pytest.param(JOINT, 4, 60, False, (4, 60, 64), id="both"),
        pytest.param(TWO_VIEWS, None, None, True, (32, 32, 96), id="two views"),
        pytest.param(TWO_VIEWS, None, None, False, (16, 8, 32), id="two views, shared"),
        pytest.param(SAMPLED, None, None, True, (32, 30, 92), id="whole scans"),
        pytest.param(SAMPLED, 16, 2, True, (16, 2, 20), id="less than the partitions of a scan"),
        pytest.param(PAIRED, None, None, True, (32, 32, 64), id="pairs"),
        pytest.param(PAIRED, None, None, False, (16, 16, 32), id="pairs, shared"),
        pytest.param(PAIRED, 24, None, False, (24, 24, 48), id="pairs of the labeled images"),
        pytest.param(PAIRED, None, 5, True, (5, 5, 10), id="pairs of the unlabeled images"),
        pytest.param(PRETRAINED, None, None, True, (0, 15, 30), id="pre-training keeps the planned rows"),
        pytest.param(PRETRAINED, 8, 30, True, (0, 30, 60), id="pre-training on more images"),
        pytest.param(Needs(), None, 8, True, (32, 0, 32), id="the control has no unlabeled image"),
        pytest.param(Needs(), 16, None, True, (16, 0, 16), id="the control with fewer labeled images"),
        pytest.param(TWICE, None, None, True, (32, 0, 64), id="every labeled image twice"),
        pytest.param(TWICE, None, None, False, (16, 0, 32), id="every labeled image twice, in the planned rows"),
        pytest.param(TWICE, 16, None, False, (16, 0, 32), id="16 labeled images twice"),
        pytest.param(replace(TWICE, stage="pretrain"), None, None, True, (16, 0, 32), id="pre-training on labels"),
    ],
)
def test_rows(needs, labeled, unlabeled, fits, expected):
    rows = plan_rows(32, labeled, unlabeled, needs, 3, fits)
    assert (rows.labeled, rows.images, rows.student_rows) == expected


@pytest.mark.parametrize("needs", [Needs(), TWICE, JOINT, TWO_VIEWS, SAMPLED, PAIRED, PRETRAINED])
@pytest.mark.parametrize("fits", [True, False])
def test_rows_add_up_at_every_batch_size(needs, fits):
    smallest = needs.labeled_views + needs.student_views
    for batch_size in range(1, 40):
        rows = plan_rows(batch_size, None, None, needs, 3, fits)
        assert rows.student_rows == needs.labeled_views * rows.labeled + needs.student_views * rows.images > 0
        assert rows.extra_rows == max(0, rows.student_rows - batch_size)
        assert (rows.images > 0) == (needs.student_views > 0)
        if rows.scans:
            assert rows.images == rows.scans * rows.partitions_per_scan
        if not fits and batch_size >= smallest:
            assert rows.extra_rows == 0
        if needs.paired:
            assert rows.labeled == rows.images


@pytest.mark.parametrize("needs", [JOINT, TWO_VIEWS, PAIRED, Needs(), TWICE, PRETRAINED])
@pytest.mark.parametrize("batch_size", [2, 7, 16, 33])
def test_the_shares_of_two_ranks_add_up(needs, batch_size):
    rows = plan_rows(batch_size, None, None, needs, None)
    shares = (batch_size - batch_size // 2, batch_size // 2)
    parts = [share_of(rows, share, batch_size, needs, None) for share in shares]
    for key in ("labeled", "images"):
        whole = getattr(rows, key)
        assert abs(sum(getattr(part, key) for part in parts) - whole) <= (1 if whole > 1 else 2)
    if needs.student_views == 1:
        assert [(part.labeled, part.images) for part in parts] == [(share, share) for share in shares]


def test_unequal_pairs_are_refused(monkeypatch):
    method = trainers.nnUNetTrainerMeanTeacher.method_class
    monkeypatch.setattr(method, "needs", PAIRED)
    acdc = read_example("acdc")
    sentence = r"labeled_per_step is 4 and unlabeled_per_step is 8 in the example.*one number"
    with pytest.raises(UserError, match=sentence):
        resolved(acdc, "2d", TEACHER, labeled_per_step=4, unlabeled_per_step=8)
    run = resolved(acdc, "2d", TEACHER, labeled_per_step=4, unlabeled_per_step=4)
    assert (run.rows.labeled, run.rows.images) == (4, 4)


def test_a_run_knows_its_steps():
    assert resolved(read_example("acdc"), "2d", TEACHER, num_epochs=16).facts.steps == 16 * 250


# --- plans that nnU-Net makes of few labeled scans ---------------------------------------------------------------

# labeled scans, configuration -> batch size that nnU-Net plans: at most 5 % of the labeled voxels, at least 2
PLANNED = {
    (2, "2d"): 2,
    (10, "2d"): 5,
    (100, "2d"): 48,
    (2, "3d_fullres"): 2,
    (10, "3d_fullres"): 2,
    (100, "3d_fullres"): 5,
}


def plan(root: Path, scans: int, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Plan a dataset of short-axis stacks with nnU-Net's planner, from its fingerprint alone."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(variable, str(root / variable))
        (root / variable / "Dataset902_Stacks").mkdir(parents=True)
    cases = {f"case{i}": {"images": [f"case{i}_0000.nii.gz"], "label": f"case{i}.nii.gz"} for i in range(scans)}
    dataset = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "right": 1, "wall": 2, "left": 3},
        "numTraining": scans,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        "dataset": cases,
    }
    fingerprint = {
        "foreground_intensity_properties_per_channel": {},
        "median_relative_size_after_cropping": 1.0,
        "shapes_after_crop": [[10, 256, 216]] * scans,
        "spacings": [[10.0, 1.56, 1.56]] * scans,
    }
    write_json(root / "nnUNet_raw" / "Dataset902_Stacks" / "dataset.json", dataset)
    write_json(root / "nnUNet_preprocessed" / "Dataset902_Stacks" / "dataset_fingerprint.json", fingerprint)
    plans = ExperimentPlanner("Dataset902_Stacks").plan_experiment()
    return {**json.loads(json.dumps(plans)), "fingerprint": fingerprint}


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Callable[[int], dict]:
    """Returns plans for a number of labeled scans, each made once."""
    made: dict[int, dict] = {}

    def plans_of(scans: int) -> dict:
        if scans not in made:
            with pytest.MonkeyPatch.context() as monkeypatch:
                made[scans] = plan(tmp_path_factory.mktemp(f"scans{scans}"), scans, monkeypatch)
        return made[scans]

    return plans_of


def resolve(plans: dict, configuration: str, trainer: str, device: str = "cuda", **options) -> Resolved:
    """Resolve a trainer without meta-labels."""
    return resolve_run(
        plans["configurations"][configuration],
        plans,
        plans["fingerprint"],
        None,
        getattr(trainers, trainer).method_class,
        device,
        "the plans",
        **options,
    )


@pytest.mark.parametrize(("scans", "configuration"), PLANNED)
def test_few_labeled_scans_keep_every_row_that_nnunet_planned_for_them(planned, scans, configuration):
    plans, batch_size = planned(scans), PLANNED[scans, configuration]
    assert plans["configurations"][configuration]["batch_size"] == batch_size
    run = resolve(plans, configuration, TEACHER)
    values = {key: run.settings[key].value for key in ("labeled_per_step", "unlabeled_per_step", "student_rows")}
    assert values == {
        "labeled_per_step": batch_size,
        "unlabeled_per_step": batch_size,
        "student_rows": 2 * batch_size,
    }
    sentence = (
        f"{batch_size} labeled rows + {batch_size} unlabeled images x 1 views = {2 * batch_size} rows, "
        f"{batch_size} planned"
    )
    assert run.settings["labeled_per_step"].reason == run.settings["unlabeled_per_step"].reason == sentence
    assert run.settings["student_rows"].reason == f"{batch_size} more than planned: memory grows with them"
    assert run.too_large is None
    control = resolve(plans, configuration, CONTROL)
    assert (control.rows.labeled, control.rows.images) == (batch_size, 0)


@pytest.mark.parametrize(("scans", "configuration"), PLANNED)
def test_the_rows_fit_exactly_where_nnunets_estimate_does(planned, scans, configuration):
    plans, batch_size = planned(scans), PLANNED[scans, configuration]
    values = network_cost(plans["configurations"][configuration]).values
    needed = 2 * batch_size * values * BYTES_PER_VALUE
    assert 0 < needed / 2 < 8.5e9, "nnU-Net plans for 8 GB"
    enough = resolve(plans, configuration, TEACHER, memory=needed)
    assert (enough.rows.student_rows, enough.too_large) == (2 * batch_size, None)
    assert enough.settings["device"].reason == f"rows depend on its memory of {needed / 1e9:.1f} GB"
    less = resolve(plans, configuration, TEACHER, memory=0.99 * needed)
    half = batch_size // 2
    assert (less.rows.labeled, less.rows.images) == (half, batch_size - half)
    assert less.too_large == (
        f"{2 * batch_size} rows would need about {needed / 1e9:.1f} GB of {0.99 * needed / 1e9:.1f} GB"
    )
    assert less.settings["labeled_per_step"].reason.endswith(f"no more than planned: {less.too_large}")
    assert less.settings["student_rows"].reason == "as planned"
    two = resolve(plans, configuration, "nnUNetTrainerCPS", memory=needed)
    assert two.too_large is not None, "the second network needs memory too"


def test_every_view_of_an_unlabeled_image_needs_memory(planned):
    plans = planned(10)
    needed = (5 + 2 * 3) * network_cost(plans["configurations"]["2d"]).values * BYTES_PER_VALUE
    acdc = read_example("acdc")
    run = {
        memory: resolve_run(
            plans["configurations"]["2d"],
            plans,
            plans["fingerprint"],
            example_meta(acdc),
            trainers.nnUNetTrainerSPCon.method_class,
            "cuda",
            "the plans",
            memory=memory,
        )
        for memory in (0.99 * needed, needed)
    }
    assert (run[needed].rows.labeled, run[needed].rows.images, run[needed].too_large) == (5, 3, None), "one scan"
    less = run[0.99 * needed]
    assert (less.rows.labeled, less.rows.images, less.too_large is None) == (2, 1, False)


def test_plans_that_do_not_say_what_the_network_is_share_the_planned_rows_on_a_gpu(planned):
    plans = planned(10)
    unknown = {**plans["configurations"]["2d"], "architecture": {"network_class_name": "my.Net", "arch_kwargs": {}}}
    plans = {**plans, "configurations": {"2d": unknown}}
    assert resolve(plans, "2d", TEACHER).rows.labeled == 5, "on a CPU"
    run = resolve(plans, "2d", TEACHER, memory=80e9)
    assert (run.rows.labeled, run.rows.images) == (2, 3)
    assert run.too_large == "the plans do not say how much memory the network needs"


def test_the_largest_share_of_a_rank_has_to_fit(planned):
    plans = planned(10)
    row = network_cost(plans["configurations"]["2d"]).values * BYTES_PER_VALUE
    shares = {3: 6 * row, 2: 4 * row}  # of a batch of 5 on two ranks
    for memory, fits in ((shares[3], True), (0.99 * shares[3], False), (shares[2], False)):
        runs = [resolve(plans, "2d", TEACHER, rank_batch_size=n, ranks=2, memory=memory) for n in shares]
        assert [run.too_large is None for run in runs] == [fits, fits], "ranks agree"
        assert [(run.rows.labeled, run.rows.images) for run in runs] == ([(3, 3), (2, 2)] if fits else [(1, 2), (1, 1)])
        assert len({run.settings["labeled_per_step"] for run in runs}) == 1


@pytest.mark.parametrize(
    ("trainer", "device", "sentence"),
    [
        (TEACHER, "cuda", "the GPU, which is not known here: 2 labeled and 3 unlabeled images where more do not fit"),
        (TEACHER, "cpu", "on cpu no value depends on it; on cuda, rows depend on the memory of the GPU"),
        (CONTROL, "cuda", "no value depends on it"),
    ],
)
def test_the_device_says_whether_rows_depend_on_its_memory(planned, trainer, device, sentence):
    assert resolve(planned(10), "2d", trainer, device).settings["device"].reason.endswith(sentence)


def test_what_is_asked_for_depends_on_no_memory():
    run = resolved(read_example("acdc"), "2d", TEACHER, labeled_per_step=4, unlabeled_per_step=8)
    assert run.settings["device"].reason == "no value depends on it"


def test_too_large_counts_the_second_network():
    network = replace(network_cost({"patch_size": [8, 8]}), values=1e9)
    assert too_large(2, network, None, 16e9) is None
    assert too_large(2, network, network, 31e9) == "2 rows would need about 32.0 GB of 31.0 GB"
    assert too_large(10**6, network, network, None) is None


# --- the memory of a training ------------------------------------------------------------------------------------


def test_a_small_gpu_is_said_in_the_log(training, monkeypatch):
    sentence = "a step has no more rows than planned: 8 rows would need about "
    for memory, images, said in ((None, 4, False), (1.0, 2, True)):
        trainer = make_trainer(TEACHER, "2d_short")
        monkeypatch.setattr(trainer, "_device_memory", lambda memory=memory: memory)
        trainer.initialize()
        assert (trainer.rows.labeled, trainer.rows.images) == (images, images)
        assert (sentence in Path(trainer.log_file).read_text()) == said


@pytest.mark.parametrize("began_on", [1.0, None])
def test_a_resumed_run_keeps_its_rows_on_another_gpu(training, monkeypatch, began_on):
    trainer = make_trainer(TEACHER, "2d_short")
    monkeypatch.setattr(trainer, "_device_memory", lambda: began_on)
    run_until(trainer, 1, monkeypatch)

    resumed = make_trainer(TEACHER, "2d_short", continue_training=True)
    monkeypatch.setattr(resumed, "_device_memory", lambda: None if began_on else 1.0)
    resumed.load_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    assert resumed.rows.labeled == resumed.rows.images == (2 if began_on else 4)
    settings = resumed.resolved.settings
    assert settings["unlabeled_per_step"].value == resumed.rows.images
    assert settings["unlabeled_per_step"].reason.endswith("as the run began")
    assert resumed.resolved.too_large is None, "it is not the memory of this GPU that decided"
    run_until(resumed, None, monkeypatch)
    assert resumed.current_epoch == 2

    configure(training, "other", "2d_short", labeled_per_step=3)
    changed = make_trainer(TEACHER, "other", continue_training=True)
    number = resumed.rows.labeled
    with pytest.raises(SystemExit, match=f"--set labeled_per_step={number} unlabeled_per_step={number}`"):
        changed.load_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")


def test_the_memory_of_ranks_is_that_of_the_smallest(training):
    row = network_cost(make_trainer(TEACHER, "2d_short").configuration_manager.configuration).values * BYTES_PER_VALUE
    enough, less = 4 * row, 3 * row  # two of four labeled rows, and as many unlabeled ones, on each rank
    ranks = ddp.train(TEACHER, "2d_short", 1, memory=(less, enough))
    assert [rank["rows"] for rank in ranks] == [(1, 1), (1, 1)]
    assert ranks[0]["settings"] == ranks[1]["settings"]
    assert ranks[0]["settings"]["labeled_per_step"] == 2


def test_memory_is_that_of_a_gpu_alone():
    assert memory_of(torch.device("cpu")) is None
    assert not dist.is_initialized()
    assert smallest_over_ranks(8.0) == 8.0
    assert smallest_over_ranks(None) is None
    if torch.cuda.is_available():
        assert memory_of(torch.device("cuda")) > 1e9


def test_show_says_that_rows_depend_on_a_gpu_that_is_not_here(training, monkeypatch, capsys):
    monkeypatch.setattr("nnunet_semicon.training.memory.memory_of", lambda device: None)
    assert main(["configure", "-d", "901", "-c", "2d_short", "--show", "-tr", TEACHER]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 labeled and 2 unlabeled images where more do not fit" in printed


def test_a_step_has_the_images_that_are_asked_for(training):
    configure(training, "asked", "2d_short", labeled_per_step=1, unlabeled_per_step=5)
    trainer = started(TEACHER, "asked")
    batch = next(trainer.dataloader_train)
    assert (batch["n_labeled"], len(batch["case"])) == (1, 6)
    step(trainer, batch)
    settings = read_json(Path(trainer.output_folder) / "semicon_config.json")["settings"]
    assert settings["unlabeled_per_step"]["value"] == 5
    assert settings["unlabeled_per_step"]["reason"].startswith("set in the plans")


# --- checkpoints without the key ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trainer", "rows"),
    [
        pytest.param(TEACHER, (28, 28), id="one view"),
        pytest.param(SPCON, (28, 12), id="two views, whole scans"),
        pytest.param("nnUNetTrainerMCSC", (28, 28), id="two networks"),
    ],
)
def test_the_rows_of_an_earlier_run_are_told_and_restored(trainer, rows):
    acdc = read_example("acdc")
    now = resolved(acdc, "2d", trainer)
    then = resolved(acdc, "2d", trainer, labeled_per_step=rows[0], unlabeled_per_step=rows[1])
    earlier = {key: derived.value for key, derived in then.settings.items() if key != "unlabeled_per_step"}
    changed = now.changed(earlier)
    assert {key: changed[key][0] for key in ("labeled_per_step", "unlabeled_per_step")} == {
        "labeled_per_step": rows[0],
        "unlabeled_per_step": rows[1],
    }
    assert now.restoring(changed) == f"labeled_per_step={rows[0]} unlabeled_per_step={rows[1]}"
    assert then.changed(earlier) == {}


@pytest.mark.parametrize("trainer", [CONTROL, STAGE, "nnUNetTrainerSupervisedLocalPretrain"])
def test_an_earlier_run_without_labeled_or_without_unlabeled_rows_goes_on(trainer):
    now = resolved(read_example("acdc"), "2d", trainer)
    earlier = {key: derived.value for key, derived in now.settings.items() if key != "unlabeled_per_step"}
    assert now.changed(earlier) == {}
