"""``semicon configure`` and ``semicon trainers``: hyper-parameters without code."""

import json
import os
import re
from pathlib import Path

import pytest

from nnunet_semicon import trainers
from nnunet_semicon.cli.key_values import parse_grid, parse_seeds, parse_settings
from nnunet_semicon.cli.main import main
from nnunet_semicon.configuration.config import Settings, is_list, keys_of, setting
from nnunet_semicon.configuration.plans import (
    add_configuration,
    check_name,
    differences,
    inherited_block,
    read_plans,
    remove_configurations,
    select_ours,
    write_plans,
)
from nnunet_semicon.configuration.run_length import about_run_length
from nnunet_semicon.errors import UserError
from nnunet_semicon.experiments.variants import COMMAND_LINE, MOST_CONFIGURATIONS, nested, refuse_overlap, variants_of
from tests.tiny import Tiny, read_json, write_json

PLANS = {"plans_name": "nnUNetPlans", "configurations": {"2d": {"batch_size": 12}}}


def with_configurations(**configurations) -> dict:
    return {**PLANS, "configurations": {**PLANS["configurations"], **configurations}}


def ours(parent: str, **block) -> dict:
    return {"inherits_from": parent, "semicon": block}


# --- the plans: adding -------------------------------------------------------------------------------------------


def test_a_configuration_inherits_and_carries_the_whole_block():
    one = add_configuration(PLANS, "a", "2d", {"num_epochs": 3, "batch_size": 4})
    assert one["configurations"]["a"] == {"inherits_from": "2d", "semicon": {"num_epochs": 3}, "batch_size": 4}
    two = add_configuration(one, "b", "a", {"seed": 1})
    assert two["configurations"]["b"]["semicon"] == {"num_epochs": 3, "seed": 1}
    assert PLANS["configurations"] == {"2d": {"batch_size": 12}}


def test_nested_values_are_merged_over_those_of_the_parent():
    plans = add_configuration(PLANS, "a", "2d", {"lambda": {"position": 0.5}})
    plans = add_configuration(plans, "b", "a", {"lambda": {"patient": 0.1}})
    plans = add_configuration(plans, "c", "b", {"lambda": {"position": 2}})
    assert plans["configurations"]["b"]["semicon"] == {"lambda": {"position": 0.5, "patient": 0.1}}
    assert plans["configurations"]["c"]["semicon"] == {"lambda": {"position": 2, "patient": 0.1}}
    assert plans["configurations"]["a"]["semicon"] == {"lambda": {"position": 0.5}}


def test_a_block_is_inherited_through_a_configuration_without_one():
    plans = with_configurations(a=ours("2d", seed=1), handmade={"inherits_from": "a", "patch_size": [8, 8]})
    assert inherited_block(plans["configurations"], "handmade") == {"seed": 1}
    assert inherited_block(plans["configurations"], "2d") == {}


@pytest.mark.parametrize(
    "name",
    ["a__b", "a/b", "a\\b", "a b", "", "-a", "_a", "a_", ".", "..", "a.", "ä", "a\n", "x" * 151],
)
def test_names_that_no_folder_survives_are_refused(name):
    with pytest.raises(UserError, match="choose a"):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "2d_tau01", "2d_g_lambda-patient0.01", "A+b-1e-05", "x" * 150])
def test_other_names_are_fine(name):
    check_name(name)


@pytest.mark.parametrize("name", ["2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres", "handmade", "whole"])
def test_names_that_are_not_ours_are_never_taken(name):
    handmade = {"handmade": {"inherits_from": "2d"}, "whole": {"semicon": {"seed": 1}, "patch_size": [8, 8]}}
    with pytest.raises(UserError, match=f"'{name}' is nnU-Net's own and is never edited"):
        add_configuration(with_configurations(**handmade), name, "2d", {})


@pytest.mark.parametrize(
    ("configurations", "parent", "sentence"),
    [
        ({}, "2e", "no configuration '2e' in nnUNetPlans.json; did you mean '2d'"),
        ({"new": ours("2d")}, "new", "configuration 'new' cannot inherit from itself: choose another --name"),
        ({"new": ours("2d"), "child": ours("new")}, "child", "'child' inherits from 'new', so 'new' cannot"),
        ({"child": ours("2f")}, "child", "'child' inherits from '2f', which is not in the plans; did you mean '2d'"),
        ({"a": ours("b"), "b": ours("a")}, "a", "a, b inherit from each other"),
        ({"low": {"previous_stage": "3d_lowres"}, "a": ours("low")}, "a", "'a' is a cascade stage"),
    ],
)
def test_parents_that_cannot_be_are_refused(configurations, parent, sentence):
    with pytest.raises(UserError, match=sentence):
        add_configuration(with_configurations(**configurations), "new", parent, {})


def test_differences_name_every_value():
    old = {**ours("2d", temperature=0.1, **{"lambda": {"patient": 1}}), "batch_size": 4}
    new = ours("2e", temperature=0.2, seed=1, **{"lambda": {"patient": 1}})
    assert differences(old, new) == [
        'inherits_from: "2d" -> "2e"',
        "temperature: 0.1 -> 0.2",
        "batch_size: 4 -> not set",
        "seed: not set -> 1",
    ]
    assert differences(old, old) == []


# --- the plans: removing -----------------------------------------------------------------------------------------

FAMILY = with_configurations(
    tau_1=ours("2d"), tau_2=ours("2d"), child=ours("tau_2"), tau_hand={"inherits_from": "2d", "patch_size": [8, 8]}
)


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        (["tau_1"], ["tau_1"]),
        (["tau_*"], ["tau_1", "tau_2"]),
        (["tau_[12]", "child", "tau_1"], ["tau_1", "tau_2", "child"]),
        (["*"], ["tau_1", "tau_2", "child"]),
    ],
)
def test_names_and_patterns_select_only_ours(patterns, chosen):
    assert select_ours(FAMILY, patterns) == chosen


@pytest.mark.parametrize(
    ("patterns", "sentence"),
    [
        (["2d"], "'2d' is nnU-Net's own and is never removed"),
        (["tau_hand"], "nnU-Net's own"),
        (["tau_1", "tau_3"], "no configuration 'tau_3' in nnUNetPlans.json; did you mean 'tau_"),
        (["2*"], "no configuration of ours in nnUNetPlans.json matches '2\\*'; ours are tau_1, tau_2, child"),
    ],
)
def test_what_cannot_be_removed_is_refused(patterns, sentence):
    with pytest.raises(UserError, match=sentence):
        select_ours(FAMILY, patterns)


def test_a_block_added_by_hand_does_not_make_nnunets_own_ours():
    plans = with_configurations(**{"3d_cascade_fullres": ours("3d_fullres", seed=1)})
    with pytest.raises(UserError, match="'3d_cascade_fullres' is nnU-Net's own and is never removed"):
        select_ours(plans, ["3d_cascade_fullres"])


def test_a_parent_is_removed_only_with_its_children():
    with pytest.raises(UserError, match=r"'tau_2' cannot be deleted alone.*delete child too"):
        remove_configurations(FAMILY, ["tau_1", "tau_2"])
    left = remove_configurations(FAMILY, ["tau_2", "child"])
    assert list(left["configurations"]) == ["2d", "tau_1", "tau_hand"]
    assert "child" in FAMILY["configurations"]


# --- the plans: files --------------------------------------------------------------------------------------------


def test_a_written_file_keeps_order_numbers_and_permissions(tmp_path):
    plans = {"plans_name": "p", "z": [1.0, 0.3125, 1e-08], "a": {"é": None, "deep": [[1, 2]]}, "configurations": {}}
    path = tmp_path / "plans.json"
    write_json(path, plans)
    before = path.read_text()
    path.chmod(0o664)
    write_plans(read_plans(path), path)
    assert path.read_text() == before
    assert path.stat().st_mode & 0o777 == 0o664
    assert os.listdir(tmp_path) == ["plans.json"]


def test_a_file_that_cannot_be_written_is_one_sentence_and_leaves_nothing(tmp_path):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UserError, match=r"folder.json cannot be written \(Is a directory\)"):
        write_plans(PLANS, tmp_path / "folder.json")
    assert os.listdir(tmp_path) == ["folder.json"]
    with pytest.raises(UserError, match=r"cannot be written \(No such file or directory\)"):
        write_plans(PLANS, tmp_path / "missing" / "plans.json")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "cannot be read"),
        ("\x80", "cannot be read"),
        ("[]", "is not a plans file"),
        ('{"plans_name": "p"}', "is not a plans file"),
        ('{"configurations": {}}', "is not a plans file"),
        ('{"plans_name": "p", "configurations": {"2d": 1}}', "is not a plans file"),
        (
            '{"plans_name": "p", "configurations": {"2d": {"semicon": 5}}}',
            "the 'semicon' block of configuration '2d' in .* is 5, expected an object",
        ),
    ],
)
def test_a_broken_plans_file_is_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "plans.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=sentence):
        read_plans(path)


# --- KEY=VALUE ---------------------------------------------------------------------------------------------------


def test_settings_are_json_or_text_and_nest():
    values = parse_settings(["a=1", "b=x", "lambda.patient=0.1", "lambda.position=1", "c=null"])
    assert nested(values) == {
        "a": 1,
        "b": "x",
        "lambda": {"patient": 0.1, "position": 1},
        "c": None,
    }


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("key=true", True),
        ("key=True", "True"),
        ("key=-1e-3", -0.001),
        ("key=[1,2]", [1, 2]),
        ("key=1,2", "1,2"),
        ('key={"a": 1}', {"a": 1}),
        ("key=a=b", "a=b"),
        ("key=NaN", "NaN"),
        ("key=-Infinity", "-Infinity"),
        ("key=1e999", "1e999"),
        ('key={"a": {"b": 1}}', {"a": {"b": 1}}),
    ],
)
def test_values(word, value):
    assert parse_settings([word]) == {"key": value}


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("key=1,2", [1, 2]),
        ("key=[1,2]", [1, 2]),
        ("key=1", [1]),
        ("key=a,b", ["a", "b"]),
        ("key=[a, b]", ["a", "b"]),
        ("key=[[1,2],[3]]", [[1, 2], [3]]),
    ],
)
def test_values_of_lists(word, value):
    assert parse_settings([word], lists={"key"}) == {"key": value}


def test_which_settings_are_lists():
    class Config(Settings):
        places: list[str] = setting(["a", "b"], "places")
        lambda_: list[float] = setting([], "weights")
        number: int = setting(1, "number")

    assert {key for key, field in keys_of(Config).items() if is_list(field)} == {"places", "lambda"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["temperature"], "'temperature' after --set is not KEY=VALUE"),
        (["temperature="], "is not KEY=VALUE"),
        (["=1"], "is not KEY=VALUE"),
        (["lambda.=1"], "is not KEY=VALUE"),
        ([".a=1"], "is not KEY=VALUE"),
        (["a=1", "a=2"], "'a' and 'a' after --set set the same value"),
        (["lambda=1", "lambda.patient=2"], "'lambda' and 'lambda.patient' after --set set the same value"),
        (["lambda.patient=2", "lambda={}"], "'lambda.patient' and 'lambda' after --set"),
    ],
)
def test_malformed_settings_are_refused(words, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_settings(words)


@pytest.mark.parametrize(
    ("words", "lists", "grid"),
    [
        (["a=1,2.5", "lambda.patient=0,0.01"], (), {"a": [1, 2.5], "lambda.patient": [0, 0.01]}),
        (["a=1"], (), {"a": [1]}),
        (["a=true,1,null,x"], (), {"a": [True, 1, None, "x"]}),
        (["a=[1,2],[3]"], ["a"], {"a": [[1, 2], [3]]}),
        (["a=x,y"], ["a"], {"a": [["x"], ["y"]]}),
        (['a={"x":1,"y":2},{"x":3}'], (), {"a": [{"x": 1, "y": 2}, {"x": 3}]}),
        (['a="x,y",z'], (), {"a": ["x,y", "z"]}),
    ],
)
def test_grids(words, lists, grid):
    assert parse_grid(words, lists) == grid


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["a=1,,2"], "'a=1,,2' after --grid has an empty value"),
        (["a=1,"], "has an empty value"),
        (["a="], "'a=' after --grid is not KEY=VALUE"),
        (["a=1,2,1.0"], "has the value 1.0 twice"),
        (["a=x,x"], "has the value x twice"),
        (["a=1", "a=2"], "'a' and 'a' after --grid set the same value"),
    ],
)
def test_malformed_grids_are_refused(words, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_grid(words)


@pytest.mark.parametrize(
    ("fixed", "varied", "seeds", "sentence"),
    [
        (["a"], ["a"], False, "'a' is in --grid and 'a' in --set"),
        (["lambda"], ["lambda.patient"], False, "'lambda.patient' is in --grid and 'lambda' in --set"),
        (["seed"], [], True, "'seed' is in --set and in --seeds"),
        ([], ["seed"], True, "'seed' is in --grid and in --seeds"),
    ],
)
def test_a_value_is_set_in_one_way_only(fixed, varied, seeds, sentence):
    with pytest.raises(UserError, match=sentence):
        refuse_overlap(fixed, varied, seeds, COMMAND_LINE)


def test_one_entry_may_be_fixed_while_another_varies():
    refuse_overlap(["lambda.position", "seed"], ["lambda.patient"], False, COMMAND_LINE)
    assert variants_of("n", {"lambda.position": 1}, {"lambda.patient": [2, 3]}, None) == {
        "n_lambda-patient2": {"lambda": {"position": 1, "patient": 2}},
        "n_lambda-patient3": {"lambda": {"position": 1, "patient": 3}},
    }


@pytest.mark.parametrize("text", ["a", "1.5", "", "1,", "-1", "0,0", "1,01"])
def test_malformed_seeds_are_refused(text):
    with pytest.raises(UserError, match=f"--seeds is '{text}', expected"):
        parse_seeds(text)


# --- the cells of a grid -----------------------------------------------------------------------------------------


def test_every_cell_and_seed_has_a_name_and_its_values():
    variants = variants_of("n", {"x": 0}, {"gamma_start": [1, 2], "batch_size": [4]}, [0, 5])
    assert variants == {
        f"n_gamma_start{gamma}_batch_size4_s{seed}": {"x": 0, "gamma_start": gamma, "batch_size": 4, "seed": seed}
        for gamma in (1, 2)
        for seed in (0, 5)
    }


def test_without_a_grid_there_is_one_configuration():
    assert variants_of("n", {"x": 1}, {}, None) == {"n": {"x": 1}}


def test_names_of_cells_survive_nnunets_parsing():
    from nnunetv2.utilities.file_path_utilities import parse_dataset_trainer_plans_configuration_from_path as parse

    values = [1, 0.01, 1e-05, -2.5, True, None, "linear", "a/b", [1, 2], {"a": 1}, "x_"]
    names = list(variants_of("2d_g", {}, {"key": values[:-1]}, [0])) + list(variants_of("n", {}, {"k": [0.5]}, None))
    assert len(set(names)) == len(values)
    for name in names:
        check_name(name)
        folder = f"/results/Dataset027_ACDC/nnUNetTrainerSPCon__nnUNetPlans__{name}/fold_0"
        assert parse(folder) == ("Dataset027_ACDC", "nnUNetTrainerSPCon", "nnUNetPlans", name)


def test_too_many_configurations_and_equal_names_are_refused():
    variants_of("n", {}, {"a": list(range(MOST_CONFIGURATIONS))}, None)
    with pytest.raises(UserError, match=f"would give {MOST_CONFIGURATIONS * 2} configurations, expected at most"):
        variants_of("n", {}, {"a": list(range(MOST_CONFIGURATIONS))}, [0, 1])
    with pytest.raises(UserError, match="two configurations of the grid would be named 'n_a1-2'"):
        variants_of("n", {}, {"a": [[1, 2], "1-2"]}, None)


# --- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def place(prepared, tmp_path, monkeypatch) -> Tiny:
    """A copy of the prepared dataset that the command may change."""
    copy = prepared.fresh(tmp_path)
    copy.use(monkeypatch)
    return copy


@pytest.fixture
def seen(prepared, monkeypatch) -> Tiny:
    """The prepared dataset itself, for commands that write nothing."""
    prepared.use(monkeypatch)
    before = prepared.plans_file.read_bytes()
    yield prepared
    assert prepared.plans_file.read_bytes() == before
    assert not list(prepared.preprocessed_dataset.glob("*.tmp"))


def configure(*words) -> int:
    return main(["configure", "-d", "901", *words])


def configurations(place: Tiny) -> dict:
    return read_json(place.plans_file)["configurations"]


def refused(capsys) -> str:
    """The one sentence of a refusal."""
    error = capsys.readouterr().err
    assert error.startswith("semicon configure: ")
    assert "Traceback" not in error
    assert error.count("\n") == 1
    return error


def test_configure_writes_one_configuration_per_seed_and_prints_the_line(place, capsys):
    words = ["-c", "2d", "--name", "mine", "--set", "temperature=0.1", "batch_size=3", "--seeds", "0,7"]
    assert configure(*words) == 0
    assert configurations(place)["mine_s7"] == {
        "inherits_from": "2d",
        "semicon": {"temperature": 0.1, "seed": 7},
        "batch_size": 3,
    }
    assert "nnUNetv2_train 901 mine_s0 0 -tr nnUNetTrainerSPCon\n" in capsys.readouterr().out


def test_without_a_trainer_the_printed_one_has_the_keys(place, capsys):
    def printed(*words: str) -> str:
        assert configure("-c", "2d", "--name", "mine", "--force", *words) == 0
        (name,) = re.findall(r"nnUNetv2_train 901 mine\S* 0 -tr (\S+)$", capsys.readouterr().out, re.MULTILINE)
        return name

    assert printed() == "nnUNetTrainerSemicon"
    assert printed("--set", "num_epochs=3", "threshold=0.9") == "nnUNetTrainerSemicon"
    assert printed("--set", "teacher_noise=0.2") == "nnUNetTrainerMeanTeacher"
    assert printed("--set", "threshold=0.9", "gamma_start=2") == "nnUNetTrainerSPCon", "self-training and a contrast"
    assert printed("--set", "teacher_noise=0.2", "gamma_start=2") == "nnUNetTrainerSemicon", "no trainer has both"
    assert printed("--set", "teacher_noise=0.2", "-tr", "nnUNetTrainerCPS") == "nnUNetTrainerCPS"


def test_nothing_else_in_the_plans_changes(place):
    before = read_json(place.plans_file)
    assert configure("-c", "2d", "--name", "mine", "--set", "seed=1") == 0
    after = read_json(place.plans_file)
    assert list(after["configurations"]) == [*before["configurations"], "mine"]
    del after["configurations"]["mine"]
    assert json.dumps(after) == json.dumps(before)


def test_planning_again_keeps_ours(place):
    assert configure("-c", "2d", "--name", "mine", "--set", "seed=1", "batch_size=3") == 0
    written = configurations(place)
    place.run("nnUNetv2_plan_experiment", "-d", "901", nnUNet_n_proc_DA="1")  # it asks torch for that many threads
    again = configurations(place)
    assert again["2d"] != written["2d"]  # the tests' plans are smaller than what nnU-Net plans
    assert again["mine"] == written["mine"]


def test_a_grid_writes_every_cell_and_nnunet_reads_it(place, capsys):
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    grid = ["lambda.patient=0,0.01", "batch_size=3,5"]
    assert configure("-c", "2d_short", "--name", "g", "--set", "lambda.position=0.5", "--grid", *grid) == 0
    names = [f"g_lambda-patient{p}_batch_size{b}" for p in ("0", "0.01") for b in (3, 5)]
    printed = re.findall(r"nnUNetv2_train 901 (\S+) 0 -tr nnUNetTrainerSPCon$", capsys.readouterr().out, re.MULTILINE)
    assert printed == names
    read = PlansManager(str(place.plans_file)).get_configuration("g_lambda-patient0.01_batch_size5")
    assert read.batch_size == 5
    assert read.data_identifier == "nnUNetPlans_2d"
    assert read.configuration["semicon"] == {
        **configurations(place)["2d_short"]["semicon"],
        "lambda": {"position": 0.5, "patient": 0.01},
    }


def test_the_line_has_trainer_plans_and_device(place, capsys):
    place.plans_file.rename(place.preprocessed_dataset / "other.json")
    words = ["-p", "other", "-c", "2d", "--name", "mine", "-tr", "nnUNetTrainerMeanTeacher", "-device", "cpu"]
    assert configure(*words) == 0
    line = "nnUNetv2_train 901 mine 0 -tr nnUNetTrainerMeanTeacher -p other -device cpu\n"
    assert line in capsys.readouterr().out


def test_words_after_a_repeated_option_are_kept(place):
    assert configure("-c", "2d", "--name", "mine", "--set", "seed=1", "--set", "num_epochs=2") == 0
    assert configurations(place)["mine"]["semicon"] == {"seed": 1, "num_epochs": 2}


def test_the_same_command_again_changes_nothing(place, capsys):
    words = ["-c", "2d", "--name", "mine", "--set", "temperature=0.1", "--grid", "gamma_end=40,50", "--seeds", "0,1"]
    assert configure(*words) == 0
    first = capsys.readouterr().out
    before = place.plans_file.stat()
    assert configure(*words) == 0
    again = capsys.readouterr().out
    assert place.plans_file.stat().st_ino == before.st_ino
    assert "has, unchanged, mine_gamma_end40_s0" in again
    assert again.splitlines()[1:] == first.splitlines()[1:]


def test_other_values_need_force_and_are_named(place, capsys):
    words = ["-c", "2d", "--name", "mine", "--seeds", "0,1"]
    assert configure(*words, "--set", "temperature=0.1") == 0
    assert configure("-c", "mine_s0", "--name", "child") == 0
    results = place.results / place.name / "nnUNetTrainerMeanTeacher__nnUNetPlans__mine_s1"
    results.mkdir(parents=True)
    capsys.readouterr()
    before = place.plans_file.read_text()

    assert configure(*words, "--set", "temperature=0.2") == 1
    sentence = refused(capsys)
    assert "'mine_s0' already exists with other values (temperature: 0.1 -> 0.2), and so have mine_s1" in sentence
    assert "--force" in sentence
    assert place.plans_file.read_text() == before

    assert configure(*words, "--set", "temperature=0.2", "--force") == 0
    written = configurations(place)
    assert written["mine_s1"]["semicon"] == {"temperature": 0.2, "seed": 1}
    assert written["child"]["semicon"] == {"temperature": 0.1, "seed": 0}
    printed = capsys.readouterr().out
    assert "child inherited from what was replaced and keeps the hyper-parameters it had" in printed
    assert f"results of an earlier configuration of that name lie in {results}: training would overwrite" in printed


def test_a_key_that_the_trainer_does_not_use_is_said(place, capsys):
    words = ("-c", "2d", "--name", "mine", "--force", "--set", "num_epochs=2")
    assert configure(*words, "teacher_noise=0.2", "-tr", "nnUNetTrainerSPCon") == 0
    note = "note: nnUNetTrainerSPCon has no 'teacher_noise', which is for nnUNetTrainerMeanTeacher"
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")] == [note]
    assert configure(*words, "teacher_noise=0.2", "-tr", "nnUNetTrainerMeanTeacher") == 0
    assert "note" not in capsys.readouterr().out


def test_without_a_trainer_the_command_names_those_that_use_a_key(place, capsys):
    words = ("-c", "2d", "--name", "mine", "--force", "--set", "num_epochs=2")
    assert configure(*words, "teacher_noise=0.2") == 0
    assert "note: 'teacher_noise' is used by nnUNetTrainerMeanTeacher\n" in capsys.readouterr().out


def test_a_value_is_checked_for_the_trainer_that_runs(place, capsys, monkeypatch):
    """Two methods may have one key with different types: it is legal where one of them allows the value."""

    class Other(Settings):
        teacher_noise: int = setting(1, "steps of the noise", low=1)

    monkeypatch.setattr(trainers.nnUNetTrainerPLGCL.method_class, "Config", Other)
    words = ("-c", "2d", "--name", "mine", "--force", "--set")
    assert configure(*words, "teacher_noise=0.5") == 0
    assert "'teacher_noise' is used by nnUNetTrainerMeanTeacher\n" in capsys.readouterr().out
    assert configure(*words, "teacher_noise=3") == 0
    assert "'teacher_noise' is used by nnUNetTrainerMeanTeacher, nnUNetTrainerPLGCL\n" in capsys.readouterr().out
    assert configure(*words, "teacher_noise=0.5", "-tr", "nnUNetTrainerPLGCL") == 1
    assert "'teacher_noise' in --set is 0.5, expected a whole number" in capsys.readouterr().err
    assert configure(*words, "teacher_noise=-1", "-tr", "nnUNetTrainerSPCon") == 1
    assert "'teacher_noise' in --set is -1, expected at least 0" in capsys.readouterr().err


NEW = ["-c", "2d", "--name", "mine"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([*NEW, "--set", "temprature=0.1"], "'temprature' in --set; did you mean 'temperature'"),
        ([*NEW, "--set", "temperature=-1"], "expected at least 0.005"),
        ([*NEW, "--set", "temperature=NaN"], "'temperature' in --set is 'NaN', expected a number"),
        ([*NEW, "--set", "temperature=[1]"], "'temperature' in --set is [1], expected a number"),
        ([*NEW, "--set", "temperature.x=1"], "'temperature' in --set is {'x': 1}, expected a number"),
        ([*NEW, "--set", "temperature=null"], "'temperature' in --set is None, expected a number"),
        ([*NEW, "--set", "cutout=1"], "expected true or false"),
        ([*NEW, "--set", "regularizer=soft"], "expected one of linear, hard, none"),
        ([*NEW, "--set", "lambda.patients=1"], "unknown entry 'lambda.patients' in --set; did you mean 'patient'"),
        ([*NEW, "--set", "scales.patient=1"], "unknown entry 'scales.patient' in --set; known are 1, 1/4, 1/8"),
        ([*NEW, "--set", "level_weight.patient=1"], "unknown entry 'level_weight.patient' in --set"),
        ([*NEW, "--set", "lambda.patient.x=1"], "'lambda.patient' in --set is {'x': 1}, expected a number"),
        ([*NEW, "--set", "lambda=1"], "'lambda' in --set is 1, expected an object"),
        ([*NEW, "--set", "temperature"], "is not KEY=VALUE"),
        ([*NEW, "--set", "batch_size=0"], "'batch_size' in --set is 0, expected a whole number of at least 1"),
        ([*NEW, "--grid", "batch_size=2,0"], "'batch_size' in --grid is 0, expected a whole number of at least 1"),
        ([*NEW, "--seeds", "a"], "expected whole numbers such as 0,1,2"),
        ([*NEW, "--seeds", "0", "--set", "seed=1"], "'seed' is in --set and in --seeds"),
        ([*NEW, "--grid", "gama_start=1,2"], "'gama_start' in --grid; did you mean 'gamma_start'"),
        ([*NEW, "--grid", "temperature=0.1,0"], "'temperature' in --grid is 0, expected at least 0.005"),
        ([*NEW, "--grid", "lambda.patients=0,1"], "unknown entry 'lambda.patients' in --grid"),
        ([*NEW, "--grid", "lambda.patient=0,-1"], "'lambda.patient' in --grid is -1, expected at least 0"),
        ([*NEW, "--grid", "seed=1,2", "--set", "seed=1"], "'seed' is in --grid and 'seed' in --set"),
        ([*NEW, "--grid", "num_epochs=1,2", "--seeds", ",".join(map(str, range(251)))], "would give 502"),
        (["-c", "2d", "--name", "3d_lowres"], "'3d_lowres' is nnU-Net's own and is never edited"),
        (["-c", "2d", "--name", "3d_fullres"], "'3d_fullres' is nnU-Net's own and is never edited"),
        (["-c", "2d", "--name", "a__b"], "contains '__'"),
        (["-c", "2d", "--name", "a_", "--seeds", "0"], "contains '__'"),
        (["-c", "2d", "--name", "a/b"], "cannot be part of a folder name"),
        (["-c", "2d", "--name", ""], "cannot be part of a folder name"),
        (["-c", "2e", "--name", "mine"], "no configuration '2e' in nnUNetPlans.json; did you mean '2d'"),
        ([*NEW, "-tr", "nnUNetTrainerSpCon"], "no trainer 'nnUNetTrainerSpCon'"),
        ([*NEW, "-p", "nnUNetPlan"], "nnUNetPlan.json does not exist, but other plans do; name one of them with -p"),
        ([*NEW, "-p", "dataset"], "dataset.json is not a plans file"),
        (["--name", "mine"], "-c is missing: name the configuration to inherit from"),
        (["--show"], "-c is missing: name the configuration to show"),
        (["-c", "2d"], "-c needs --name NAME"),
        (["--set", "seed=1"], "--set needs --name NAME"),
        (["--force"], "--force needs --name NAME"),
        (["-c", "2d", "--show", "--grid", "seed=1"], "--show does not go together with --grid"),
        (["-c", "2d", "--show", "--seeds", "1"], "--show does not go together with --seeds"),
        (["-c", "2d", "--show", "--set", "temprature=1"], "did you mean 'temperature'"),
        (["-c", "2d", "--show", "--name", "3d_lowres"], "nnU-Net's own"),
        (["-c", "2e", "--show"], "no configuration '2e'"),
        (["-c", "2d", "--show", "-tr", "nnUNetTrainer"], "no trainer 'nnUNetTrainer' in this package"),
        (["--delete", "2d_short", "--name", "mine"], "--delete does not go together with --name"),
        (["--delete", "2d"], "'2d' is nnU-Net's own and is never removed"),
        (["--delete", "2d_shrot"], "did you mean '2d_short'"),
        (["--delete", "x*"], "no configuration of ours in nnUNetPlans.json matches 'x*'"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(seen, capsys, words, sentence):
    assert configure(*words) == 1
    assert sentence in refused(capsys)


def test_a_dataset_that_is_not_there_is_one_sentence(seen, capsys):
    assert main(["configure", "-d", "902", "-c", "2d", "--name", "mine"]) == 1
    assert "dataset '902' does not exist" in refused(capsys)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"semicon": {"temprature": 1}}, "'temprature' in the 'semicon' block that configuration '2d_short' has"),
        ({"semicon": {"seed": -1}}, "'seed' in the 'semicon' block that configuration '2d_short' has"),
        ({"semicon": []}, "the 'semicon' block of configuration '2d_short'"),
        ({"previous_stage": "3d_lowres"}, "'2d_short' is a cascade stage"),
        ({"inherits_from": "2e"}, "'2d_short' inherits from '2e', which is not in the plans"),
    ],
)
@pytest.mark.parametrize("words", [["--name", "mine"], ["--show"]])
def test_a_parent_that_could_not_train_is_refused(place, capsys, change, sentence, words):
    plans = read_json(place.plans_file)
    plans["configurations"]["2d_short"].update(change)
    write_json(place.plans_file, plans)
    assert configure("-c", "2d_short", *words) == 1
    assert sentence in refused(capsys)
    assert read_json(place.plans_file) == plans


def test_broken_plans_are_one_sentence(place, capsys):
    place.plans_file.write_text("{")
    for words in (["-c", "2d", "--name", "mine"], ["--delete", "mine"], ["-c", "2d", "--show"], []):
        assert configure(*words) == 1
        assert "nnUNetPlans.json cannot be read" in refused(capsys)
    assert place.plans_file.read_text() == "{"


def test_plans_that_cannot_be_written_are_one_sentence(place, capsys):
    Path(f"{place.plans_file}.tmp").mkdir()
    before = place.plans_file.read_text()
    assert configure("-c", "2d", "--name", "mine") == 1
    assert "nnUNetPlans.json cannot be written" in refused(capsys)
    assert place.plans_file.read_text() == before


def add_phases(place: Tiny, of: dict[int, str]) -> None:
    """Write a table with a column ``phase``: frame number -> label."""
    cases = {path.name[:-12] for folder in ("imagesTr", "imagesUn") for path in (place.raw_dataset / folder).iterdir()}
    rows = [f"{case},{of[int(case[-1])]}\n" for case in sorted(cases)]
    (place.raw_dataset / "meta_labels.csv").write_text("case,phase\n" + "".join(rows))


def test_a_column_of_the_meta_table_can_be_weighted(place, capsys):
    add_phases(place, {1: "ED", 2: "ES"})
    assert configure("-c", "2d", "--name", "mine", "--grid", "lambda.phase=0,0.1") == 0
    assert configurations(place)["mine_lambda-phase0.1"]["semicon"] == {"lambda": {"phase": 0.1}}
    assert configure("-c", "mine_lambda-phase0.1", "--show") == 0
    assert "phase 0.1" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--set", "--grid"])
def test_a_column_with_one_value_is_no_label(place, capsys, option):
    add_phases(place, {1: "ED", 2: "ED"})
    before = place.plans_file.read_text()
    assert configure("-c", "2d", "--name", "mine", option, "lambda.phase=0.1") == 1
    sentence = refused(capsys)
    assert f"'lambda.phase' in {option}" in sentence
    assert "only one value, 'ED'" in sentence
    assert place.plans_file.read_text() == before


# --- list, delete, show ------------------------------------------------------------------------------------------


def test_the_dataset_alone_lists_what_is_ours(place, capsys):
    values = ["lambda.patient=0.1", "batch_size=3", "regularizer=hard"]
    assert configure("-c", "2d", "--name", "mine", "--set", *values) == 0
    capsys.readouterr()
    assert configure() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["configuration", "2d_short", "3d_fullres_short", "mine"]
    assert lines[-1].split(None, 2) == ["mine", "2d", "lambda.patient=0.1 regularizer=hard batch_size=3"]
    assert configure("--delete", "*") == 0
    capsys.readouterr()
    assert configure() == 0
    assert "has no configuration of ours, only nnU-Net's own (2d, 3d_fullres)" in capsys.readouterr().out


def test_what_was_added_is_deleted_and_results_stay(place, capsys):
    before = place.plans_file.read_text()
    assert configure("-c", "2d", "--name", "mine", "--grid", "gamma_end=40,50") == 0
    kept = [place.results / place.name / f"nnUNetTrainer{t}__nnUNetPlans__mine_gamma_end40" for t in ("A", "B")]
    other = place.results / place.name / "nnUNetTrainerA__nnUNetPlans__mine_gamma_end4"
    for folder in (*kept, other):
        (folder / "fold_0").mkdir(parents=True)
    capsys.readouterr()
    assert configure("--delete", "mine_*") == 0
    printed = capsys.readouterr().out
    assert place.plans_file.read_text() == before
    assert "mine_gamma_end50  2d  gamma_end=50" in printed
    notes = [f"note: results still lie in {folder}" for folder in kept]
    assert [line for line in printed.splitlines() if line.startswith("note")] == notes
    assert all((folder / "fold_0").is_dir() for folder in kept)


def test_a_parent_is_not_deleted_alone(place, capsys):
    assert configure("-c", "2d_short", "--name", "child") == 0
    before = place.plans_file.read_text()
    assert configure("--delete", "2d_short") == 1
    assert "delete child too" in refused(capsys)
    assert place.plans_file.read_text() == before
    assert configure("--delete", "2d_short", "child") == 0
    assert "2d_short" not in configurations(place)


def shown(printed: str) -> dict[str, str]:
    """Key -> value and reason of the lines of a table."""
    return {line.split()[0]: line.split(None, 1)[1] for line in printed.splitlines() if line.startswith("  ")}


def files_of(root: Path) -> set[tuple[Path, int]]:
    return {(path, path.stat().st_mtime_ns) for path in root.rglob("*")}


def test_show_prints_the_run_and_writes_nothing(place, capsys):
    before = files_of(place.root)
    assert configure("-c", "2d_short", "--show", "--set", "gamma_start=7", "batch_size=3", "-device", "cpu") == 0
    printed = capsys.readouterr().out
    assert "nnUNetTrainerSPCon on Dataset901_Tiny, configuration 2d_short with gamma_start=7 batch_size=3" in printed
    table = shown(printed)
    assert table["num_epochs"].split(None, 1) == ["2", "set in the plans"]
    assert table["gamma_start"].startswith("7")
    assert table["batch_size"].startswith("3")
    assert table["device"].startswith("cpu")
    assert {"gamma_end", "queue_size", "partitions", "labeled_per_step"} <= table.keys()
    assert files_of(place.root) == before


def test_show_is_for_one_trainer(seen, capsys):
    assert configure("-c", "2d", "--show", "-tr", "nnUNetTrainerMeanTeacher", "--name", "mine") == 0
    printed = capsys.readouterr().out
    assert "configuration mine, device cuda" in printed
    assert "rampup" in shown(printed)
    assert "gamma_start" not in shown(printed)


def test_show_is_what_a_run_writes(training, capsys):
    from tests.harness import started

    trainer = started("nnUNetTrainerSPCon", "2d_short")
    written = read_json(Path(trainer.output_folder) / "semicon_config.json")["settings"]
    run_length = about_run_length(trainer.resolved.needs, 2, 2)
    assert run_length is not None
    assert run_length in Path(trainer.log_file).read_text()
    capsys.readouterr()
    assert configure("-c", "2d_short", "--show", "-tr", "nnUNetTrainerSPCon", "-device", "cpu") == 0
    printed = capsys.readouterr().out
    assert run_length in printed
    table = shown(printed)
    assert list(table) == list(written)
    assert all(table[key].endswith(entry["reason"]) for key, entry in written.items())


def test_show_works_without_the_raw_dataset(place, capsys, monkeypatch):
    assert configure("-c", "2d_short", "--show") == 0
    with_raw = capsys.readouterr().out
    monkeypatch.delenv("nnUNet_raw")
    assert configure("-c", "2d_short", "--show") == 0
    assert capsys.readouterr().out == with_raw


# --- semicon trainers --------------------------------------------------------------------------------------------


def test_every_trainer_is_listed_with_what_it_does_needs_and_costs(capsys):
    from nnunet_semicon import trainers

    assert main(["trainers"]) == 0
    printed = capsys.readouterr().out
    blocks = {block.splitlines()[0]: block for block in printed.strip().replace("\n\n\n", "\n\n").split("\n\n")}
    in_order = [[title, *names] for title, names in trainers.GROUPS.items()]
    assert list(blocks)[:-1] == [line for group in in_order for line in group]
    for name in trainers.__all__:
        block = blocks[name]
        lines = block.splitlines()
        assert lines[0] == name
        assert lines[1].split(None, 1) == ["does", getattr(trainers, name).__doc__.splitlines()[0]]
        assert [line.split()[0] for line in lines[1:]] == ["does", "needs", "rows", "costs"]
        needs = getattr(trainers, name).method_class.needs
        assert ("unlabeled scans" in lines[2]) == (needs.views > 0)
        assert ("meta-labels" in lines[2]) == needs.meta
        assert lines[4].split(None, 1)[1] == f"beyond stock nnU-Net: {getattr(trainers, name).method_class.cost}"


def test_needs_and_rows_in_words():
    from nnunet_semicon.cli.trainers import how_rows_are_spent, what_it_needs
    from nnunet_semicon.methods.base import Needs

    assert what_it_needs(Needs()) == "labeled scans"
    assert what_it_needs(Needs(views=2, stage="pretrain")) == "unlabeled scans (without any, the training scans)"
    assert how_rows_are_spent(Needs()) == "all labeled"
    assert how_rows_are_spent(Needs(views=1, student_views=1)) == (
        "the planned ones labeled (labeled_per_step); of unlabeled images as many where memory allows "
        "(unlabeled_per_step), 1 view of each"
    )
    paired = how_rows_are_spent(Needs(views=1, student_views=2, paired=True))
    assert paired.endswith("of unlabeled images the same number, 2 views of each")


def test_all_hyper_parameters_of_one_trainer(capsys):
    from nnunet_semicon.configuration.config import keys_of
    from nnunet_semicon.configuration.run import RunConfig
    from nnunet_semicon.methods.sp_con import SPConConfig

    assert main(["trainers", "--long", "nnUNetTrainerSPCon"]) == 0
    printed = capsys.readouterr().out
    rows = {line.split()[0]: re.split(r"  +", line) for line in printed.splitlines() if line[:1].isalpha()}
    assert {*keys_of(SPConConfig), *keys_of(RunConfig), "batch_size"} <= rows.keys()
    assert rows["temperature"] == ["temperature", "0.07", "at least 0.005", "tau of the contrast [supplement 3.2]"]
    assert rows["lambda"][1] == "position=1.0 patient=0.01 self=0.0 others=0.001"
    assert rows["regularizer"][1:3] == ["linear", "linear, hard, none"]
    assert rows["ema_decay"][2] == "0 to 1"
    assert rows["cutout"][1:3] == ["false", "true, false"]
    assert rows["seed"][1:3] == ["null", "at least 0"]


def test_a_named_variant_shows_its_own_defaults(capsys):
    assert main(["trainers", "--long", "nnUNetTrainerSimCLRPretrain"]) == 0
    printed = capsys.readouterr().out
    rows = {line.split()[0]: re.split(r"  +", line) for line in printed.splitlines() if line[:1].isalpha()}
    assert rows["lambda"][1] == "position=0.0 patient=0.0 self=1.0 others=0.0"
    assert rows["regularizer"][1] == "none"
    assert rows["temperature"][1] == "0.07"


def test_an_unknown_trainer_is_one_sentence(capsys):
    assert main(["trainers", "--long", "nnUNetTrainerSPcon"]) == 1
    assert (
        "no trainer 'nnUNetTrainerSPcon' in this package; did you mean 'nnUNetTrainerSPCon'" in capsys.readouterr().err
    )
