"""Rules of self-configuration, on trimmed plans of real and synthetic datasets; what a resumed run may change."""

import json
from pathlib import Path

import pytest

from nnunet_semicon import trainers
from nnunet_semicon.configuration.config import Settings, setting
from nnunet_semicon.configuration.derived import Derived
from nnunet_semicon.configuration.resolved import resolve_run
from nnunet_semicon.configuration.rules import slice_extent
from nnunet_semicon.configuration.wording import as_table, assignments, changes, changes_in_words, in_words
from nnunet_semicon.errors import UserError
from scripts.make_self_configuration import EXAMPLES, MARKED, PAGE, PAGES, example_meta, page, read_example, resolved
from tests.harness import configure, make_trainer, run_until
from tests.tiny import write_json

SPCON = "nnUNetTrainerSPCon"


# example, configuration -> labeled rows, unlabeled images, student rows, partitions, weights, queue, gamma
PINNED = {
    ("acdc", "2d"): (56, 54, 164, 3, {"position": 1, "patient": 0.01, "phase": 0.001}, 0, (2.290, 50.88)),
    ("acdc", "3d_fullres"): (7, 7, 21, None, {"patient": 0.01, "phase": 0.001}, 96, (2.299, 50.91)),
    ("hippocampus", "2d"): (277, 276, 829, 3, {"position": 1, "patient": 0.01}, 0, (3.093, 53.37)),
    ("hippocampus", "3d_fullres"): (7, 7, 21, None, {"patient": 0.01}, 96, (2.299, 50.91)),
    ("promise12", "2d"): (32, 30, 92, 5, {"position": 1, "patient": 0.01}, 0, (1.998, 49.98)),
    ("mmwhs", "2d"): (12, 7, 26, 7, {"position": 1, "patient": 0.01}, 224, (2.679, 52.09)),
    ("spleen", "2d"): (12, 7, 26, 7, {"position": 1, "patient": 0.01}, 224, (2.679, 52.09)),
    ("rgb2d", "2d"): (12, 12, 36, None, {"patient": 0.01}, 0, (1.536, 48.58)),
    ("volume3d", "3d_fullres"): (2, 2, 6, 7, {"position": 1, "patient": 0.01, "scanner": 0.001}, 224, (2.658, 52.02)),
}


@pytest.mark.parametrize(("example", "configuration"), PINNED)
def test_resolved_values_are_pinned(example, configuration):
    run = resolved(read_example(example), configuration, SPCON)
    values = {key: derived.value for key, derived in run.settings.items()}
    labeled, unlabeled, rows, partitions, weights, queue, gamma = PINNED[example, configuration]
    assert (values["labeled_per_step"], values["unlabeled_per_step"]) == (labeled, unlabeled)
    assert (values["student_rows"], values["partitions"]) == (rows, partitions)
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


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_pages_are_in_step_with_the_rules(path):
    written = path.read_text()
    assert page(written) == written, "run `python scripts/make_self_configuration.py`"


def test_every_method_with_a_paper_shows_what_the_paper_prints():
    shown = {match["name"] for path in PAGES for match in MARKED.finditer(path.read_text())}
    for name in trainers.__all__:
        method = getattr(trainers, name).method_class
        alike = [n for n in trainers.__all__ if getattr(trainers, n).method_class is method]
        assert not method.paper or any(f"paper {n}" in shown for n in alike), name
    assert {"hyper-parameters", "examples"} <= shown


def test_the_page_says_which_defaults_are_a_trainers_own():
    lines = [line for line in PAGE.read_text().splitlines() if " has other defaults: " in line]
    own = {line.split("`")[1]: line for line in lines}
    assert "`second_network` plain_unet, `cross_loss` cross_entropy" in own["nnUNetTrainerCPS"]
    assert "`regularizer` none" in own["nnUNetTrainerMetaContrastPretrain"]
    assert "`lambda` position 0, patient 0, self 1, others 0" in own["nnUNetTrainerSimCLRPretrain"]
    assert "`optimizer` adamw, `learning_rate` 0.001" in own["nnUNetTrainerSwinUNet"]
    assert "nnUNetTrainerSupervisedControl" not in own


@pytest.mark.parametrize("trainer", [SPCON, "nnUNetTrainerSupervisedControl", "nnUNetTrainerMCSC"])
def test_neither_the_number_of_ranks_nor_their_memory_is_a_setting(trainer):
    """A checkpoint of one machine goes on, or is validated, on another one; ranks may have different shares.

    What a rule made of the memory when the run began is kept.
    """
    acdc = read_example("acdc")
    configuration = acdc["configurations"]["2d"]

    def resolve(share: int | None = None, ranks: int = 1, memory: float | None = None, stored=None):
        return resolve_run(
            {**configuration, "batch_size": 7},
            acdc,
            acdc["fingerprint"],
            example_meta(acdc),
            getattr(trainers, trainer).method_class,
            "cuda",
            "the example",
            rank_batch_size=share,
            ranks=ranks,
            memory=memory,
            stored=stored,
        )

    machines = [{}, {"share": 4, "ranks": 2}, {"share": 3, "ranks": 2}, {"memory": 1.0}, {"share": 4, "memory": 1.0}]
    for first in ({}, {"memory": 1.0}):
        begun = resolve(**first)
        stored = {key: derived.value for key, derived in begun.settings.items()}
        others = [resolve(**machine, stored=stored) for machine in machines]
        assert all(other.changed(stored) == {} for other in others)
        assert {run.rows.student_rows for run in others} != {begun.rows.student_rows}


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
    assert (run.rows.labeled, run.rows.images) == (1, 1)
    assert reason.startswith("2 planned rows shared by 2 networks: 2 rows would need about ")
    assert reason.endswith("1 more than planned: memory grows with them")


def test_changes_name_what_changed_and_ignore_what_may():
    then = {"temperature": 0.07, "device": "cuda", "save_every": 50, "gone": 1}
    now = {"temperature": 0.1, "device": "cpu", "save_every": 5}
    words = changes_in_words(changes(then, now))
    assert words == ["temperature was 0.07 and is now 0.1", "gone was 1 and is now null"]
    assert changes({"temperature": 0.1}, {"temperature": 0.1}) == {}


def test_what_was_set_before_is_written_as_it_is_typed():
    then = {"temperature": 0.07, "lambda": {"patient": 0.01}, "sampling": "exact", "seed": None, "balanced": True}
    assert assignments(then) == "temperature=0.07 lambda.patient=0.01 sampling=exact seed=null balanced=true"


def test_a_key_that_a_checkpoint_lacks_had_the_value_of_its_time():
    """A checkpoint of a version without these keys goes on, unless one of them is set to something else."""
    acdc = read_example("acdc")
    new = ("optimizer", "learning_rate", "lr_schedule", "warmup", "encoder_lr_factor", "supervised_loss", "preset")
    for trainer in (SPCON, "nnUNetTrainerSPConPretrain", "nnUNetTrainerSwinUNet", "nnUNetTrainerMCSC"):
        now = resolved(acdc, "2d", trainer)
        earlier = {key: derived.value for key, derived in now.settings.items() if key not in new}
        earlier["window_size"] = [1, 2]  # a value that earlier checkpoints of PLGCL hold
        assert now.changed(earlier) == {}, trainer
        other = resolved(acdc, "2d", trainer, optimizer="adam", learning_rate=3e-5)
        before = (now.run.optimizer, now.run.learning_rate)
        assert other.changed(earlier) == {"optimizer": (before[0], "adam"), "learning_rate": (before[1], 3e-5)}


def test_a_new_key_may_name_the_value_that_held_before_it(monkeypatch):
    class Later(Settings):
        patience: int = setting(5, "steps", before=2)

    name = "nnUNetTrainerSupervisedControl"
    monkeypatch.setattr(getattr(trainers, name).method_class, "Config", Later)
    now = resolved(read_example("acdc"), "2d", name)
    earlier = {key: derived.value for key, derived in now.settings.items() if key != "patience"}
    changed = now.changed(earlier)
    assert changed == {"patience": (2, 5)}
    assert now.restoring(changed) == "patience=2"


def test_defaults_of_the_stage_are_nnunets_unless_the_method_names_others():
    acdc = read_example("acdc")
    control = resolved(acdc, "2d", "nnUNetTrainerSupervisedControl").run
    values = (control.optimizer, control.learning_rate, control.lr_schedule, control.warmup, control.weight_decay)
    assert values == ("sgd", 0.01, "poly", 0.0, 3e-5)
    pretraining = resolved(acdc, "2d", "nnUNetTrainerSPConPretrain")
    run = pretraining.run
    assert (run.optimizer, run.learning_rate, run.lr_schedule, run.warmup, run.weight_decay) == (
        "radam",
        2e-4,
        "cosine",
        0.1,
        1e-5,
    )
    assert pretraining.settings["optimizer"] == Derived("radam", "SP-Con's code")
    assert resolved(acdc, "2d", "nnUNetTrainerSupervisedControl", optimizer="adam").run.learning_rate == 1e-3


def test_preset_paper_sets_what_the_paper_prints_and_a_set_value_wins():
    acdc = read_example("acdc")
    run = resolved(acdc, "2d", SPCON, preset="paper", gamma_end=60.0)
    assert run.settings["lambda_reg"] == Derived(0.1, "supplement 3.2 (ACDC)")
    assert (run.run.optimizer, run.run.lr_schedule, run.run.supervised_loss) == ("radam", "cosine", "ce")
    assert (run.config.gamma_start, run.config.gamma_end, run.config.queue_size) == (2.0, 60.0, 0)
    assert run.settings["gamma_end"].reason == "set in the plans"
    cps = resolved(acdc, "2d", "nnUNetTrainerCPS", preset="paper")
    assert cps.config.cross_loss == "cross_entropy", "the trainer's own value stays"


def test_partitions_can_be_set():
    run = resolved(read_example("acdc"), "2d", SPCON, partitions=5)
    assert run.facts.partitions == run.run.partitions == 5
    assert run.settings["partitions"] == Derived(5, "set in the plans")


@pytest.mark.parametrize("trainer", trainers.__all__)
@pytest.mark.parametrize("preset", ["recommended", "paper"])
def test_no_open_value_is_left(trainer, preset):
    run = resolved(read_example("acdc"), "2d", trainer, preset=preset)
    empty = {key for key, derived in run.settings.items() if derived.value is None}
    assert empty <= {"seed", "swin_weights", "pixels", "gamma_start", "gamma_end"}
    if "gamma_start" in empty:
        assert run.config.regularizer == "none"


def test_a_resumed_run_with_other_settings_is_refused_by_name(training, monkeypatch):
    configure(training, "changed", "2d_short", temperature=0.07)
    trainer = run_until(make_trainer(SPCON, "changed"), 1, monkeypatch)
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")

    configure(training, "changed", "2d_short", temperature=0.2, save_every=7)
    written = Path(trainer.output_folder, "semicon_config.json").read_text()
    resumed = make_trainer(SPCON, "changed", continue_training=True)
    sentence = r"temperature was 0.07 and is now 0.2.*configuration 'changed'.*--set temperature=0.07`"
    with pytest.raises(SystemExit, match=sentence):
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
    unlabeled = batch["case"][batch["n_labeled"] :]
    assert batch["meta"]["phase"].tolist() == [int(case[-2:]) - 1 for case in unlabeled]
    step(trainer, batch)
    with open(f"{trainer.output_folder}/semicon_config.json") as file:
        assert json.load(file)["settings"]["lambda"]["value"]["phase"] == 0.001
