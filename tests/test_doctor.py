"""``semicon doctor``: what is in order, what is not, and what to do about it."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_semicon import autoload
from nnunet_semicon.checks import installation
from nnunet_semicon.checks.dataset import check_dataset
from nnunet_semicon.checks.findings import survived
from nnunet_semicon.cli.main import main
from nnunet_semicon.data.splits import make_splits
from tests.tiny import case_name, read_json, write_json

LABELED = [case_name(index) for index in range(6)]
UNLABELED = [case_name(index) for index in range(6, 10)]


def findings(check):
    """Statuses and texts of a check, as the command prints them."""
    return [(finding.status, f"{finding.text} -> {finding.remedy}") for finding in survived(check)]


def the_problem(check):
    """Text and remedy of the only problem."""
    (text,) = [text for status, text in findings(check) if status == "problem"]
    assert not text.endswith("-> "), "a problem without a remedy"
    return text


def notes(check):
    return [text for status, text in findings(check) if status == "note"]


@pytest.fixture
def data(tiny, tmp_path, monkeypatch):
    """A copy of the tiny dataset that a test may break, in this process's environment."""
    copy = tiny.fresh(tmp_path)
    copy.use(monkeypatch)
    return copy


@pytest.fixture
def splits(data):
    """Few labels, in the preprocessed and in the raw folder."""
    content = make_splits(LABELED, 1, 0, False, 3)
    for folder in (data.preprocessed_dataset, data.raw_dataset):
        write_json(folder / "splits_final.json", content)
    return content


@pytest.fixture(scope="module")
def folder_of_the_command(tiny):
    """The trainer folder of the installed package, which need not be the checkout."""
    return tiny.run("semicon", "doctor", "--print-export", cold=True).stdout.strip().partition("=")[2]


def dataset_check():
    return check_dataset("901")


# --- the whole command -------------------------------------------------------------------------------------------


def test_everything_in_order(tiny, folder_of_the_command):
    """As a user calls it, in a process of its own."""
    done = tiny.run("semicon", "doctor", "-d", "901", cold=True)
    assert done.stdout.endswith("no problem\n")
    for line in (
        f"nnUNet_extTrainer names {folder_of_the_command}",
        "torch loads it by itself",
        "nnU-Net finds nnUNetTrainerSPCon",
        "dataset.json, 6 cases with a label",
        "nnUNetPlans 2d: 6 cases preprocessed, patch 32 x 32, batch size 4",
        "imagesUn: 4 (2 patients) unlabeled, preprocessed for nnUNetPlans 3d_fullres",
        "patients: 3, with 6 cases",
        "slice position, nnUNetPlans 2d, 3d_fullres: 3 partitions along axis 0 (clamp(",
    ):
        assert f"  ok       {line}" in done.stdout
    assert "problem  " not in done.stdout


def test_a_problem_is_printed_with_its_remedy_and_makes_the_exit_code_one(tiny, monkeypatch, capsys):
    tiny.use(monkeypatch)
    monkeypatch.delenv("nnUNet_results")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "  problem  nnUNet_results is not set\n           -> export nnUNet_results=/your/folder\n" in out
    assert out.endswith("1 problem\n")


def test_the_printed_line_repairs_discovery(tiny, tmp_path, folder_of_the_command):
    folder = tmp_path / "it's mine"
    folder.mkdir()
    environment = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "nnUNet_extTrainer": str(folder)}
    done = tiny.run("semicon", "doctor", check=False, cold=True, **environment)
    assert done.returncode == 1
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0 keeps torch from calling" in done.stdout
    (line,) = [line.partition("run: ")[2] for line in done.stdout.splitlines() if "-> run: " in line]
    repaired = shlex.split(line.removeprefix("export "))[0].partition("=")[2]
    assert repaired == os.pathsep.join([str(folder), folder_of_the_command])
    done = tiny.run("semicon", "doctor", cold=True, **(environment | {"nnUNet_extTrainer": repaired}))
    assert "note     it is only there because you set it" in done.stdout
    assert "nnU-Net finds nnUNetTrainerSPCon" in done.stdout


def test_print_export_is_one_line_for_a_shell_and_keeps_the_users_folders(monkeypatch, capsys):
    monkeypatch.setenv(autoload.VARIABLE, os.pathsep.join(["/a b", autoload.trainer_folder(), "/c"]))
    assert main(["doctor", "--print-export"]) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    shell = subprocess.run(["sh", "-c", f'{line}printf %s "$nnUNet_extTrainer"'], capture_output=True, text=True)
    assert shell.stdout.split(os.pathsep) == ["/a b", "/c", autoload.trainer_folder()]


# --- installation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "version", "status"),
    [
        (installation.check_nnunet_version, "2.8.1", "ok"),
        (installation.check_nnunet_version, "2.8.10", "ok"),
        (installation.check_nnunet_version, "2.8", "problem"),
        (installation.check_nnunet_version, "2.9.0", "problem"),
        (installation.check_nnunet_version, "3.0", "problem"),
        (installation.check_nnunet_version, None, "problem"),
        (installation.check_torch_version, "2.5.0+cpu", "ok"),
        (installation.check_torch_version, "2.15.0", "ok"),
        (installation.check_torch_version, "2.4.1", "problem"),
        (installation.check_torch_version, "2.9.1+cu128", "problem"),
        (installation.check_torch_version, None, "problem"),
    ],
)
def test_versions(check, version, status):
    assert [s for s, _ in findings(check(version))] == [status]


def test_torchvision_that_does_not_fit_is_reported_with_its_own_words(monkeypatch, tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    text = the_problem(installation.check_torchvision())
    assert "RuntimeError: operator torchvision::nms does not exist)" in text
    assert "pip install --force-reinstall torch torchvision" in text


def test_torchvision_of_this_environment_works():
    assert [status for status, _ in findings(installation.check_torchvision())] == ["ok"]


def test_variables_must_name_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "nowhere"))
    monkeypatch.setenv("nnUNet_results", "")
    (raw, preprocessed, results) = findings(installation.check_variables())
    assert raw == ("ok", f"nnUNet_raw={tmp_path} -> ")
    assert preprocessed[0] == results[0] == "problem"
    assert f"mkdir -p {tmp_path / 'nowhere'}" in preprocessed[1]
    assert "is not set" in results[1]


def test_variables_must_name_writable_folders(monkeypatch, tmp_path):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    assert [status for status, _ in findings(installation.check_variables())] == ["note", "problem", "problem"]


# --- discovery ---------------------------------------------------------------------------------------------------


def with_user_folder(monkeypatch, tmp_path, code):
    (tmp_path / "mine.py").write_text(code)
    folders = os.pathsep.join([str(tmp_path), str(tmp_path / "gone"), autoload.trainer_folder()])
    monkeypatch.setenv(autoload.VARIABLE, folders)


def test_the_switch_is_named(monkeypatch):
    monkeypatch.setenv(autoload.SWITCH, "off")
    monkeypatch.delenv(autoload.VARIABLE, raising=False)
    assert "NNUNET_SEMICON_AUTOLOAD=off turns it off" in the_problem(installation.check_discovery())
    assert autoload.VARIABLE not in os.environ


def test_a_broken_trainer_of_the_user_is_named(monkeypatch, tmp_path):
    with_user_folder(monkeypatch, tmp_path, "import a_package_that_is_not_there")
    text = the_problem(installation.check_discovery())
    assert "a_package_that_is_not_there" in text
    assert "otherwise run `pip install .` in a clone" in text
    assert "nnunet-semicon" not in text, "it is not on the package index"
    assert any(f"{tmp_path / 'gone'}, which does not exist" in text for text in notes(installation.check_discovery()))


def test_a_trainer_that_hides_ours_is_named(monkeypatch, tmp_path):
    code = "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
    with_user_folder(monkeypatch, tmp_path, code + "class nnUNetTrainerSPCon(nnUNetTrainer):\n    pass")
    assert "another nnUNetTrainerSPCon, from mine" in the_problem(installation.check_discovery())


def test_the_checks_leave_the_variable_alone(monkeypatch, tmp_path):
    with_user_folder(monkeypatch, tmp_path, "")
    before = os.environ[autoload.VARIABLE]
    list(installation.check_discovery())
    assert os.environ[autoload.VARIABLE] == before


# --- dataset -----------------------------------------------------------------------------------------------------


def test_unknown_dataset(data):
    assert "902" in the_problem(check_dataset("902"))
    assert "Dataset902_X" in the_problem(check_dataset("Dataset902_X"))


def test_not_preprocessed(data):
    data.preprocessed_dataset.rename(data.root / "elsewhere")
    assert "run: nnUNetv2_plan_and_preprocess -d 901 -c 2d" in the_problem(dataset_check())


@pytest.fixture
def unplanned(data):
    """The raw dataset alone."""
    shutil.rmtree(data.preprocessed_dataset)
    return data


def problems_of_files(check):
    """All problems but that nothing is planned yet."""
    found = [text for status, text in findings(check) if status == "problem"]
    return [text for text in found if "nnUNetv2_plan_and_preprocess" not in text]


def images_tr(data):
    return data.raw_dataset / "imagesTr"


def drop(data, name):
    (data.raw_dataset / name).unlink()


def two_channels(data):
    """Give all cases of imagesTr a second channel but one."""
    for file in sorted(images_tr(data).iterdir())[1:]:
        shutil.copyfile(file, file.with_name(file.name.replace("_0000", "_0001")))
    shutil.rmtree(data.raw_dataset / "imagesUn")
    describe(data, channel_names={"0": "a", "1": "b"})


def describe(data, without=None, **entries):
    path = data.raw_dataset / "dataset.json"
    content = read_json(path) | entries
    content.pop(without, None)
    write_json(path, content)


FIRST = LABELED[0]
FILE_MISTAKES = {
    "no label": (
        lambda data: drop(data, f"labelsTr/{FIRST}.nii.gz"),
        [f"1 cases of imagesTr have no label in labelsTr ({FIRST})", "-> move unlabeled scans to imagesUn"],
    ),
    "no image": (
        lambda data: drop(data, f"imagesTr/{FIRST}_0000.nii.gz"),
        [f"1 labels in labelsTr have no image in imagesTr ({FIRST})"],
    ),
    "no suffix": (
        lambda data: (images_tr(data) / f"{FIRST}_0000.nii.gz").rename(images_tr(data) / f"{FIRST}.nii.gz"),
        [f"imagesTr contains files without a channel suffix ({FIRST}.nii.gz)", f"to {FIRST}_0000.nii.gz"],
    ),
    "channel missing": (two_channels, [f"case {FIRST} in", "imagesTr has the channels 0000, but dataset.json lists 2"]),
    "imagesUn": (
        lambda data: (data.raw_dataset / "imagesUn" / "x_0000.nii").touch(),
        ["imagesUn contains files that do not end with '.nii.gz'"],
    ),
    "lookalike": (
        lambda data: (data.raw_dataset / "imagesUn").rename(data.raw_dataset / "imagesUnlabeled"),
        ["rename imagesUnlabeled to imagesUn"],
    ),
}


@pytest.mark.parametrize("mistake", FILE_MISTAKES)
def test_mistakes_among_the_raw_files_are_found_before_planning(unplanned, mistake):
    make, words = FILE_MISTAKES[mistake]
    assert problems_of_files(dataset_check()) == []
    assert ("ok", "imagesUn: 4 (2 patients) unlabeled -> ") in findings(dataset_check())
    make(unplanned)
    (text,) = problems_of_files(dataset_check())
    assert not text.endswith("-> ")
    for word in words:
        assert word in text


def test_mistakes_among_the_raw_files_are_found_after_planning(data):
    drop(data, f"labelsTr/{FIRST}.nii.gz")
    assert "1 cases of imagesTr have no label" in the_problem(dataset_check())


def test_color_images_are_one_file_each(unplanned):
    describe(unplanned, channel_names={"0": "R", "1": "G", "2": "B"})
    assert problems_of_files(dataset_check()) == []


def test_an_explicit_listing_is_not_compared_with_the_folders(unplanned):
    entry = {"images": [f"imagesTr/{FIRST}_0000.nii.gz"], "label": f"labelsTr/{FIRST}.nii.gz"}
    describe(unplanned, dataset={FIRST: entry})
    drop(unplanned, f"labelsTr/{LABELED[1]}.nii.gz")
    assert problems_of_files(dataset_check()) == []


def test_a_description_without_channels_is_one_problem(unplanned, capsys, monkeypatch):
    describe(unplanned, without="channel_names", chanel_names={"0": "MRI"})
    monkeypatch.setattr("nnunet_semicon.cli.doctor.check_discovery", lambda: iter(()))  # takes seconds
    assert main(["doctor", "-d", "901"]) == 1
    out = capsys.readouterr().out
    assert out.count("Dataset901_Tiny/dataset.json has no 'channel_names', only labels, numTraining, ") == 1
    assert out.endswith("2 problems\n")  # the other: nothing is planned


def test_missing_fingerprint(data):
    (data.preprocessed_dataset / "dataset_fingerprint.json").unlink()
    assert "nnUNetv2_extract_fingerprint -d 901" in the_problem(dataset_check())


def test_missing_plans(data):
    data.plans_file.unlink()
    assert "there is no plans file" in the_problem(dataset_check())


def test_configurations(data):
    plans = read_json(data.plans_file)
    plans["configurations"] |= {
        "3d_cascade": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        "3d_lowres": {"inherits_from": "3d_fullres", "data_identifier": "nnUNetPlans_3d_lowres"},
        "2d_short": {"inherits_from": "2d", "semicon": {"num_epochs": 6}},
        "2d_typo": {"inherits_from": "2d", "semicon": {"num_epoch": 6}},
        "2d_value": {"inherits_from": "2d", "semicon": {"num_epochs": "six"}},
    }
    write_json(data.plans_file, plans)
    (data.preprocessed_dataset / "nnUNetPlans_3d_fullres" / f"{LABELED[0]}.b2nd").unlink()
    found = findings(dataset_check())
    problems = [text for status, text in found if status == "problem"]
    assert len(problems) == 3
    incomplete = f"nnUNetPlans 3d_fullres: 1 cases are not preprocessed ({LABELED[0]})"
    command = "run: nnUNetv2_preprocess -d 901 -plans_name nnUNetPlans -c 3d_fullres"
    assert f"{incomplete} -> {command}" in problems
    assert any("2d_typo: " in text and "'num_epoch'" in text and "'num_epochs'?" in text for text in problems)
    assert any("nnUNetPlans 2d_value: 'num_epochs' in the 'semicon' block is 'six'" in text for text in problems)
    assert ("note", "nnUNetPlans 3d_cascade: a cascade stage, which only nnU-Net's own trainers train -> ") in found
    assert any(status == "note" and "3d_lowres: not preprocessed" in text for status, text in found)
    alike = "nnUNetPlans 2d, 2d_short, 2d_typo, 2d_value: 6 cases preprocessed, patch 32 x 32"
    assert any(status == "ok" and alike in text for status, text in found)


def test_a_configuration_that_nnunet_cannot_read_hides_no_other(data):
    plans = read_json(data.plans_file)
    plans["configurations"] = {"orphan": {"inherits_from": "2d_gone"}, **plans["configurations"]}
    write_json(data.plans_file, plans)
    found = findings(dataset_check())
    (problem,) = [text for status, text in found if status == "problem"]
    assert "nnUNetPlans orphan: " in problem
    assert "2d_gone" in problem
    assert any(status == "ok" and "nnUNetPlans 2d: 6 cases preprocessed" in text for status, text in found)
    assert any(text.startswith("slice position, nnUNetPlans 2d") for _, text in found)


def test_an_illegible_plans_file_does_not_end_the_report(data, splits):
    data.plans_file.write_text("{")
    found = findings(dataset_check())
    problems = [text for status, text in found if status == "problem"]
    assert f"{data.plans_file} is not valid JSON" in problems[0]
    assert "there is no plans file" in problems[1]
    assert any("fold 0" in text for _, text in found)


def test_folds_are_counted_and_stock_trainers_warned_about(data, splits):
    found = findings(dataset_check())
    assert "problem" not in [status for status, _ in found]
    for number in range(3):
        assert ("ok", f"fold {number}: labeled 1, unlabeled 3 (2 patients), validation 2 (1 patient) -> ") in found
    warning = next(text for status, text in found if status == "note" and "nnU-Net's own trainers use labels" in text)
    assert "with fold all, and with a fold above 2" in warning
    assert any("planning has seen every label" in text for text in notes(dataset_check()))


def test_no_warning_without_unlabeled_lists(data):
    write_json(data.preprocessed_dataset / "splits_final.json", [{"train": LABELED[:4], "val": LABELED[4:]}])
    assert not any("labels" in text for text in notes(dataset_check()))


def test_a_draw_of_nnunet_that_tears_patients_is_noted(data):
    (text,) = [text for text in notes(dataset_check()) if "no split" in text]
    assert "not keep the 6 cases of 3 patients together" in text
    assert text.endswith("run: semicon split -d 901 --labeled N --folds 3")
    write_json(data.raw_dataset / "meta_labels.json", {case: {"patient": case} for case in [*LABELED, *UNLABELED]})
    (text,) = [text for text in notes(dataset_check()) if "no split" in text]
    assert text.endswith("5 folds with all labels -> for few labels, run: semicon split -d 901 --labeled N")
    write_json(data.raw_dataset / "meta_labels.json", {case: {"patient": "one"} for case in [*LABELED, *UNLABELED]})
    (text,) = [text for text in notes(dataset_check()) if "no split" in text]
    assert text.endswith("-> train with fold all, or name the patients with `semicon meta`")


@pytest.mark.parametrize(
    ("kept", "remedy"),
    [
        ([0, 2, 4], "semicon split -d 901 --labeled 2 --folds 3"),
        ([0, 1, 2, 4], "semicon split -d 901 --labeled 2 --folds 3"),
        ([0], "train with fold all"),
    ],
)
def test_too_few_cases_for_a_draw_of_nnunet(data, kept, remedy):
    keep_labeled(data, [LABELED[index] for index in kept])
    text = the_problem(dataset_check())
    assert f"cannot draw its 5 folds from {len(kept)} labeled case" in text
    assert remedy in text.partition(" -> ")[2]
    if len(kept) > 1:
        assert main(remedy.split()[1:]) == 0
        assert "problem" not in [status for status, _ in findings(dataset_check())]


def keep_labeled(data, cases):
    """Remove all other labeled cases, raw and preprocessed."""
    raw = [data.raw_dataset / name for name in ("imagesTr", "labelsTr")]
    for folder in (*raw, *data.preprocessed_dataset.glob("nnUNetPlans_*[ds]")):
        for file in folder.iterdir():
            if file.name.startswith(tuple(set(LABELED) - set(cases))):
                file.unlink()


def test_patients_in_validation_that_are_trained_on_without_labels(data):
    write_json(data.preprocessed_dataset / "splits_final.json", [{"train": LABELED[:4], "val": LABELED[4:]}])
    assert not any("in imagesUn" in text for text in notes(dataset_check()))
    images_un = data.raw_dataset / "imagesUn"
    (images_un / f"{UNLABELED[0]}_0000.nii.gz").rename(images_un / "patient003_frame03_0000.nii.gz")
    (text,) = [text for text in notes(dataset_check()) if "in imagesUn" in text]
    assert text.startswith("fold 0: patients in validation with scans in imagesUn")
    assert "flatters the result: patient003 " in text


def test_a_torn_patient_is_noted(data):
    write_json(data.preprocessed_dataset / "splits_final.json", [{"train": LABELED[:3], "val": LABELED[3:]}])
    assert any("patients in training and in validation" in t and "patient002" in t for t in notes(dataset_check()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unlabeled": ["patient001_frame1"]}, "did you mean 'patient001_frame01'?"),
        ({"unlabeled": LABELED[4:]}, "under 'unlabeled' and under 'val'"),
        ({"unlabeled": LABELED[:1]}, "under 'unlabeled' and under 'train'"),
        ({"train": None}, "no list of case names under 'train'"),
    ],
)
def test_wrong_splits(data, change, message):
    fold = {"train": LABELED[:2], "val": LABELED[4:], "unlabeled": LABELED[2:4]}
    write_json(data.preprocessed_dataset / "splits_final.json", [fold | change])
    text = the_problem(dataset_check())
    assert message in text
    assert "semicon split -d 901 --labeled N --force" in text


def test_splits_that_disagree(data, splits):
    splits[1]["unlabeled"] = splits[1]["unlabeled"][1:]
    write_json(data.raw_dataset / "splits_final.json", splits)
    text = the_problem(dataset_check())
    assert "disagree (fold 1, 'unlabeled')" in text
    assert "cp " in text
    (data.preprocessed_dataset / "splits_final.json").unlink()
    assert f"cp {data.raw_dataset / 'splits_final.json'}" in the_problem(dataset_check())


def test_unlabeled_cases_that_are_not_preprocessed(data):
    for file in (data.raw_dataset / "imagesUn").glob("patient004_frame01*"):
        file.rename(file.with_name(file.name.replace("patient004_frame01", "patient009_frame01")))
    problems = [text for status, text in findings(dataset_check()) if status == "problem"]
    assert len(problems) == 2
    for text, configuration in zip(problems, ("2d", "3d_fullres"), strict=True):
        assert "patient009_frame01" in text
        assert text.endswith(f"-> run: semicon preprocess -d 901 -c {configuration}")


def test_a_wrongly_named_folder_of_unlabeled_images(data):
    (data.raw_dataset / "imagesUn").rename(data.raw_dataset / "imagesUnlabeled")
    assert "rename imagesUnlabeled to imagesUn" in the_problem(dataset_check())


@pytest.mark.parametrize("planned", [True, False])
def test_an_empty_folder_of_unlabeled_images_is_noted(data, planned):
    for file in (data.raw_dataset / "imagesUn").iterdir():
        file.unlink()
    if not planned:
        shutil.rmtree(data.preprocessed_dataset)
    found = findings(dataset_check())
    assert any(status == "note" and text.startswith("imagesUn is empty -> ") for status, text in found)
    (data.raw_dataset / "imagesUn").rmdir()
    assert ("ok", "imagesUn: none (optional) -> ") in findings(dataset_check())


def test_without_raw_data(data, splits, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")
    found = findings(dataset_check())
    assert "problem" not in [status for status, _ in found]
    assert any("no raw dataset" in text for text in notes(dataset_check()))
    assert ("ok", "imagesUn: 4 (2 patients) unlabeled, preprocessed for nnUNetPlans 2d -> ") in found


def test_real_dataset(real_data, tmp_path, monkeypatch, capsys):
    name = "Dataset004_Hippocampus"
    monkeypatch.setenv("nnUNet_raw", str(real_data))
    preprocessed = tmp_path / name
    preprocessed.mkdir()
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    for file in ("dataset.json", "splits_final.json"):
        (preprocessed / file).write_text(Path(real_data, name, file).read_text())
    found = findings(check_dataset("004"))
    assert ("ok", "fold 2: labeled 4, unlabeled 171, validation 25 -> ") in found
    n_folds = len(json.loads((preprocessed / "splits_final.json").read_text()))
    assert any(f"a fold above {n_folds - 1}" in text for text in notes(check_dataset("004")))
