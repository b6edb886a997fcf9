"""Rules of self-configuration, on trimmed plans of real and synthetic datasets; what a resumed run may change."""

import json
from pathlib import Path

import pytest

from nnunet_semicon import trainers
from nnunet_semicon.configuration.resolved import as_table, differences, in_words, resolve_run
from nnunet_semicon.configuration.rules import Derived, slice_extent
from nnunet_semicon.errors import UserError
from scripts.make_self_configuration import EXAMPLES, PAGE, example_meta, page, read_example, resolved
from tests.harness import configure, make_trainer, run_until
from tests.tiny import write_json

SPCON = "nnUNetTrainerSPCon"


# example, configuration -> labeled rows, student rows, partitions, weights, queue, gamma
PINNED = {
    ("acdc", "2d"): (28, 52, 3, {"position": 1, "patient": 0.01, "phase": 0.001}, 0, (1.536, 48.58)),
    ("acdc", "3d_fullres"): (3, 7, None, {"patient": 0.01, "phase": 0.001}, 96, (2.252, 50.76)),
    ("hippocampus", "2d"): (138, 276, 3, {"position": 1, "patient": 0.01}, 0, (2.411, 51.25)),
    ("hippocampus", "3d_fullres"): (3, 7, None, {"patient": 0.01}, 96, (2.252, 50.76)),
    ("promise12", "2d"): (16, 26, 5, {"position": 1, "patient": 0.01}, 160, (2.514, 51.57)),
    ("mmwhs", "2d"): (6, 12, 7, {"position": 1, "patient": 0.01}, 224, (2.663, 52.04)),
    ("spleen", "2d"): (6, 12, 7, {"position": 1, "patient": 0.01}, 224, (2.663, 52.04)),
    ("rgb2d", "2d"): (6, 12, None, {"patient": 0.01}, 96, (2.261, 50.79)),
    ("volume3d", "3d_fullres"): (1, 3, 7, {"position": 1, "patient": 0.01, "scanner": 0.001}, 224, (2.654, 52.01)),
}


@pytest.mark.parametrize(("example", "configuration"), PINNED)
def test_resolved_values_are_pinned(example, configuration):
    run = resolved(read_example(example), configuration, SPCON)
    values = {key: derived.value for key, derived in run.settings.items()}
    labeled, rows, partitions, weights, queue, gamma = PINNED[example, configuration]
    assert (values["labeled_per_step"], values["student_rows"], values["partitions"]) == (labeled, rows, partitions)
    assert values["lambda"] == weights
    assert values["queue_size"] == queue
    assert (values["gamma_start"], values["gamma_end"]) == pytest.approx(gamma, rel=1e-3)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_value_has_a_reason(example):
    content = read_example(example)
    for configuration in content["configurations"]:
        for key, derived in resolved(content, configuration, SPCON).settings.items():
            assert derived.reason.strip(), key


def test_the_control_takes_every_row_unless_told():
    acdc, control = read_example("acdc"), "nnUNetTrainerSupervisedControl"
    assert resolved(acdc, "2d", control).facts.rows.labeled == 56
    assert resolved(acdc, "2d", control, labeled_per_step=28).facts.rows.labeled == 28


def test_what_is_set_beats_the_rule_and_says_so():
    run = resolved(read_example("acdc"), "2d", SPCON, gamma_end=60.0, **{"lambda": {"phase": 0.1, "patient": 0}})
    assert run.settings["gamma_end"] == Derived(60.0, "set in the plans")
    assert run.settings["lambda"].value == {"position": 1.0, "phase": 0.1}
    assert run.settings["lambda"].reason.startswith("set in the plans")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("sight", "unknown entry 'lambda.sight'.*did you mean 'site'"),
        ("site", "'lambda.site' in the example asks for a meta-label that cannot be used.*only one value, 'one'"),
    ],
)
def test_a_label_that_the_data_does_not_carry_is_refused(name, sentence):
    with pytest.raises(UserError, match=sentence):
        resolved(read_example("volume3d"), "3d_fullres", SPCON, **{"lambda": {name: 0.5}})


def test_a_useless_label_may_be_switched_off():
    run = resolved(read_example("volume3d"), "3d_fullres", SPCON, **{"lambda": {"site": 0}})
    assert "site" not in run.settings["lambda"].value


def test_extent_is_the_median_of_the_cases_not_the_product_of_medians():
    content = {
        "transpose_forward": [2, 0, 1],
        "original_median_shape_after_transp": [20, 9, 9],
        "original_median_spacing_after_transp": [3.0, 1, 1],
    }
    fingerprint = {
        "shapes_after_crop": [[9, 9, 10], [9, 9, 20], [9, 9, 60]],
        "spacings": [[1, 1, 9.0], [1, 1, 3.0], [1, 1, 0.5]],
    }
    assert slice_extent(content, fingerprint) == (20, 60)
    fingerprint["spacings"][1][2] = 5.0
    assert slice_extent(content, fingerprint) == (20, 90)
    assert slice_extent(content, None) == (20, 60)


def test_the_table_is_aligned_and_readable():
    text = as_table(
        {"a": Derived(1.23456789, "one"), "long_key": Derived(None, "two"), "b": Derived({"x": 0.5}, "three")}
    )
    assert text.splitlines() == ["  a         1.2346  one", "  long_key  null    two", "  b         x 0.5   three"]
    assert in_words({}) == "none"
    assert in_words(True) == "true"


def test_the_page_is_in_step_with_the_rules():
    written = PAGE.read_text()
    assert page(written) == written, "run `python scripts/make_self_configuration.py`"


def test_the_page_says_which_defaults_are_a_trainers_own():
    words = {
        "CPS": "`second_network` plain_unet, `cross_loss` cross_entropy",
        "MetaContrastPretrain": "`regularizer` none",
        "SimCLRPretrain": "`regularizer` none, `lambda` position 0, patient 0, self 1, others 0",
    }
    lines = [line for line in PAGE.read_text().splitlines() if " has other defaults: " in line]
    assert lines == [f"`nnUNetTrainer{name}` has other defaults: {own}." for name, own in words.items()]


@pytest.mark.parametrize("trainer", [SPCON, "nnUNetTrainerSupervisedControl", "nnUNetTrainerMCSC"])
def test_neither_the_number_of_ranks_nor_their_memory_is_a_setting(trainer):
    """A checkpoint of one machine goes on, or is validated, on another one; ranks may have different shares."""
    acdc = read_example("acdc")
    configuration = acdc["configurations"]["2d"]
    first, *others = (
        resolve_run(
            {**configuration, "batch_size": 7},
            acdc,
            acdc["fingerprint"],
            example_meta(acdc),
            getattr(trainers, trainer).method_class,
            "cuda",
            "the example",
            rank_batch_size=share,
            memory=memory,
        )
        for share, memory in ((None, None), (4, None), (3, None), (None, 1.0), (4, 1.0))
    )
    stored = {key: derived.value for key, derived in first.settings.items()}
    for other in others:
        assert differences(stored, other.settings) == []
    assert {run.rows.student_rows for run in others} != {first.rows.student_rows}


def test_rows_that_two_networks_cannot_share_are_said_to_be_too_many():
    acdc = read_example("acdc")
    run = resolve_run(
        {**acdc["configurations"]["2d"], "batch_size": 2},
        acdc,
        acdc["fingerprint"],
        None,
        trainers.nnUNetTrainerCPS.method_class,
        "cuda",
        "the example",
        memory=1.0,
    )
    reason = run.settings["student_rows"].reason
    assert run.rows.student_rows == 2
    assert reason.startswith("2 planned rows shared by 2 networks: they would need about ")
    assert reason.endswith("1 more than planned: the method's minimum; memory grows with it")


def test_differences_name_what_changed_and_ignore_what_may():
    stored = {"temperature": 0.07, "device": "cuda", "save_every": 50, "gone": 1}
    now = {"temperature": Derived(0.1, ""), "device": Derived("cpu", ""), "save_every": Derived(5, "")}
    assert differences(stored, now) == ["temperature was 0.07 and is now 0.1", "gone was 1 and is now null"]
    assert differences({"temperature": 0.1}, {"temperature": Derived(0.1, "")}) == []


def test_a_resumed_run_with_other_settings_is_refused_by_name(training, monkeypatch):
    configure(training, "changed", "2d_short", temperature=0.07)
    trainer = run_until(make_trainer(SPCON, "changed"), 1, monkeypatch)
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")

    configure(training, "changed", "2d_short", temperature=0.2, save_every=7)
    written = Path(trainer.output_folder, "semicon_config.json").read_text()
    resumed = make_trainer(SPCON, "changed", continue_training=True)
    with pytest.raises(SystemExit, match=r"temperature was 0.07 and is now 0.2.*configuration 'changed'"):
        resumed.load_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")

    assert Path(trainer.output_folder, "semicon_config.json").read_text() == written

    configure(training, "changed", "2d_short", temperature=0.07, save_every=7)
    resumed = make_trainer(SPCON, "changed", continue_training=True)
    resumed.load_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    assert resumed.current_epoch == 2  # nnU-Net stores the epoch to go on with


def test_a_user_column_becomes_a_label_that_trains(tiny, tmp_path, monkeypatch):
    from tests.harness import prepare, started, step

    copy = prepare(tiny.fresh(tmp_path))
    copy.use(monkeypatch)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    cases = [path.name.removesuffix("_0000.nii.gz") for path in copy.raw_dataset.glob("images*/*.nii.gz")]
    write_json(copy.raw_dataset / "meta_labels.json", {case: {"phase": case[-2:]} for case in cases})
    trainer = started(SPCON, "2d_short")
    assert trainer.method.contrast.labels == ("position", "patient", "phase")
    batch = next(trainer.dataloader_train)
    assert batch["meta"]["phase"].tolist() == [int(case[-2:]) - 1 for case in batch["case"]]
    step(trainer, batch)
    with open(f"{trainer.output_folder}/semicon_config.json") as file:
        assert json.load(file)["settings"]["lambda"]["value"]["phase"] == 0.001
