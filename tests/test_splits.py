import json
import os

import pytest

from nnunet_semicon.cli.main import main
from nnunet_semicon.data.splits import FoldCases, check_fold, labeled_cases, make_splits, read_splits, write_splits
from nnunet_semicon.errors import UserError
from nnunet_semicon.meta_labels.extract import patient_of

NAME = "Dataset907_Split"
CASES = [f"patient{p:03d}_frame{f:02d}" for p in range(10) for f in (1, 2)]
SPLITS = [
    {"train": ["a"], "val": ["b"], "unlabeled": ["c", "d"]},
    {"train": ["b"], "val": ["a"]},
]
KNOWN = ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("case", "patient"),
    [
        ("patient001_frame01", "patient001"),
        ("patient001_frame14", "patient001"),
        ("A0S9V9_ED", "A0S9V9"),
        ("A0S9V9_es", "A0S9V9"),
        ("scan7-t02", "scan7"),
        ("s12_visit2", "s12"),
        ("sub-04_ses-01", "sub-04"),
        # no time point: everything below is the patient's own name
        ("hippocampus_007", "hippocampus_007"),
        ("BraTS-GLI-00005-100", "BraTS-GLI-00005-100"),
        ("REDUCED", "REDUCED"),
        ("case_left", "case_left"),
        ("frame01", "frame01"),
        ("_ED", "_ED"),
        ("patient001_frame01_crop", "patient001_frame01_crop"),
    ],
)
def test_patient_is_the_name_before_a_time_point(case, patient):
    assert patient_of(case) == patient


# --- check_fold --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fold", [0, "0"])
def test_cases_of_a_fold(fold):
    assert check_fold(SPLITS, fold, KNOWN, "f.json") == FoldCases(["a"], ["b"], ["c", "d"])


def test_a_fold_without_the_key_has_no_unlabeled_case():
    assert check_fold(SPLITS, 1, KNOWN, "f.json") == FoldCases(["b"], ["a"], [])


def test_fold_all_takes_nothing_from_the_file():
    assert check_fold(SPLITS, "all", [], "f.json") is None


def test_a_missing_fold_is_left_to_nnunet_where_no_fold_lists_unlabeled_cases():
    assert check_fold([{"train": ["a"], "val": ["b"]}], 4, KNOWN, "f.json") is None
    assert check_fold([{"train": ["a"], "val": ["b"], "unlabeled": []}], 4, KNOWN, "f.json") is None


@pytest.mark.parametrize("fold", [2, "2", -1])
def test_a_missing_fold_is_refused_where_others_list_unlabeled_cases(fold):
    with pytest.raises(UserError, match=rf"f\.json has no fold {fold}, only 0 to 1, and lists unlabeled"):
        check_fold(SPLITS, fold, KNOWN, "f.json")


def test_a_fold_that_is_no_number_is_refused():
    with pytest.raises(UserError, match="fold 'al' is neither a number nor 'all'"):
        check_fold(SPLITS, "al", KNOWN, "f.json")


@pytest.mark.parametrize(
    ("change", "key"), [({"unlabeled": ["c", "b"]}, "'val' .a validation case"), ({"unlabeled": ["a"]}, "'train'")]
)
def test_a_case_is_not_unlabeled_and_something_else(change, key):
    case = "b" if "val" in key else "a"
    with pytest.raises(UserError, match=rf"fold 0 of f\.json lists {case} under 'unlabeled' and under {key}"):
        check_fold([SPLITS[0] | change], 0, KNOWN, "f.json")


@pytest.mark.parametrize("key", ["train", "val", "unlabeled"])
def test_an_unknown_case_is_named_with_the_nearest_one(key):
    known = ["patient_1", "patient_2", "patient_3"]
    fold = {"train": ["patient_1"], "val": ["patient_2"], "unlabeled": ["patient_3"], key: ["patient-1x"]}
    message = rf"fold 0 of f\.json lists under '{key}' .* patient-1x.*did you mean 'patient_1'\?"
    with pytest.raises(UserError, match=message):
        check_fold([fold], 0, known, "f.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "cannot be read"),
        ('{"train": []}', "is not a list of folds"),
        ('[["a"]]', "is not a list of folds"),
        ('[{"train": ["a"]}]', "fold 0 of .* has no list of case names under 'val'"),
        ('[{"train": ["a"], "val": ["b"]}, {"train": ["a"], "val": ["b"], "unlabeled": "c"}]', "fold 1 .*'unlabeled'"),
    ],
)
def test_a_malformed_file_is_refused_with_its_name(tmp_path, content, message):
    path = tmp_path / "splits_final.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_splits(str(path))
    assert str(path) in str(error.value)


# --- make_splits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_patient", [False, True])
@pytest.mark.parametrize("folds", [2, 3, 5, 10])
def test_every_fold_divides_all_cases_and_tears_no_patient(by_patient, folds):
    splits = make_splits(reversed(CASES), 3, 0, by_patient, folds)
    assert len(splits) == folds
    assert sorted(case for fold in splits for case in fold["val"]) == CASES
    for number, fold in enumerate(splits):
        assert sorted([*fold["train"], *fold["val"], *fold["unlabeled"]]) == CASES
        assert all(cases == sorted(cases) for cases in fold.values())
        assert check_fold(splits, number, CASES, "f.json") is not None
        held_out = {patient_of(case) for case in fold["val"]}
        assert not held_out & {patient_of(case) for case in [*fold["train"], *fold["unlabeled"]]}
        assert abs(len(held_out) - 10 / folds) < 1
        labeled_patients = {patient_of(case) for case in fold["train"]}
        if by_patient:
            assert len(labeled_patients) == 3
            assert len(fold["train"]) == 6
        else:
            assert len(fold["train"]) == 3


def test_cases_are_drawn_singly_unless_by_patient():
    singly = make_splits(CASES, 4, 0, False, 5)
    assert any({patient_of(c) for c in fold["train"]} & {patient_of(c) for c in fold["unlabeled"]} for fold in singly)


def test_seed_decides_and_a_smaller_number_of_labeled_cases_is_a_subset():
    assert make_splits(CASES, 4, 1, False, 5) == make_splits(CASES, 4, 1, False, 5)
    assert make_splits(CASES, 4, 1, False, 5) != make_splits(CASES, 4, 2, False, 5)
    few, many = make_splits(CASES, 2, 1, False, 5), make_splits(CASES, 4, 1, False, 5)
    for fold_few, fold_many in zip(few, many, strict=True):
        assert set(fold_few["train"]) < set(fold_many["train"])
        assert fold_few["val"] == fold_many["val"]


def test_the_split_of_a_seed_never_changes():
    assert make_splits("abcdef", 1, 0, False, 3)[0] == {
        "train": ["a"],
        "val": ["c", "f"],
        "unlabeled": ["b", "d", "e"],
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((CASES, 0, 0, False, 5), "--labeled 0: expected at least 1"),
        ((CASES, 17, 0, False, 5), "--labeled 17: fold 0 has only 16 cases"),
        ((CASES, 9, 0, True, 5), "--labeled 9: fold 0 has only 8 patients"),
        ((CASES, 1, 0, False, 11), "--folds 11: there are only 10 patients .*--folds 10"),
        ((CASES, 1, 0, False, 1), "--folds 1: expected at least 2"),
        ((CASES, 1, -1, False, 5), "--seed -1"),
        ((["p_frame01", "p_frame02"], 1, 0, False, 2), "only one patient .p., so nothing is left for validation"),
    ],
)
def test_impossible_splits_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        make_splits(*arguments)


def test_all_remaining_cases_may_be_labeled():
    assert all(fold["unlabeled"] == [] for fold in make_splits(CASES, 16, 0, False, 5))


# --- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A raw dataset with labels by name only, and an empty preprocessed folder; returns both."""
    raw, preprocessed = tmp_path / "raw" / NAME, tmp_path / "preprocessed" / NAME
    (raw / "labelsTr").mkdir(parents=True)
    preprocessed.mkdir(parents=True)
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "x": 1}, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(description))
    for case in CASES:
        (raw / "labelsTr" / f"{case}.nii.gz").touch()
    monkeypatch.setenv("nnUNet_raw", str(raw.parent))
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed.parent))
    monkeypatch.delenv("nnUNet_results", raising=False)
    return raw, preprocessed


def split(*words):
    return main(["split", "-d", "907", *words])


def files(folder):
    return sorted(path.name for path in folder.rglob("*"))


def test_split_is_written_where_nnunet_reads_it(dataset, capsys):
    raw, preprocessed = dataset
    assert split("--labeled", "4", "--by", "patient") == 0
    assert json.loads((preprocessed / "splits_final.json").read_text()) == make_splits(CASES, 4, 0, True, 5)
    assert files(preprocessed) == ["splits_final.json"]
    assert not (raw / "splits_final.json").exists()
    out = capsys.readouterr().out
    assert "8 (4 patients)  8 (4 patients)  4 (2 patients)" in out
    assert "nnUNetv2_train 907 2d 0 -tr nnUNetTrainerSemicon" in out


def test_the_table_names_patients_only_where_they_differ(dataset, capsys):
    raw, _ = dataset
    for case in CASES:
        if case.endswith("02"):
            (raw / "labelsTr" / f"{case}.nii.gz").unlink()
    assert split("--labeled", "2", "--folds", "2") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["0", "2", "3", "5"] in lines


def test_an_existing_split_is_kept_without_force_and_backed_up_with_it(dataset, capsys):
    raw, preprocessed = dataset
    (raw / "splits_final.json").write_text('["raw"]')
    (preprocessed / "splits_final.json").write_text('["preprocessed"]')
    before = files(raw), files(preprocessed)
    assert split("--labeled", "4") == 1
    err = capsys.readouterr().err
    assert "--force" in err
    assert str(raw / "splits_final.json") in err
    assert str(preprocessed / "splits_final.json") in err
    assert (files(raw), files(preprocessed)) == before
    assert (raw / "splits_final.json").read_text() == '["raw"]'

    assert split("--labeled", "4", "--force") == 0
    assert split("--labeled", "5", "--force") == 0  # most likely in the same second: the backups need two names
    for folder, content in ((raw, '["raw"]'), (preprocessed, '["preprocessed"]')):
        assert json.loads((folder / "splits_final.json").read_text()) == make_splits(CASES, 5, 0, False, 5)
        backups = sorted(path.read_text() for path in folder.glob("splits_final_backup_*.json"))
        assert len(backups) == 2
        assert content in backups


def test_a_raw_split_is_not_left_to_disagree(dataset):
    raw, preprocessed = dataset
    (raw / "splits_final.json").write_text("[]")
    assert split("--labeled", "4") == 1  # the raw file alone is reason enough to ask for --force
    assert not (preprocessed / "splits_final.json").exists()
    assert split("--labeled", "4", "--force") == 0
    assert (raw / "splits_final.json").read_text() == (preprocessed / "splits_final.json").read_text()


def test_nothing_changes_when_one_of_the_files_cannot_be_written(tmp_path):
    path = tmp_path / "splits_final.json"
    path.write_text("old")
    with pytest.raises(UserError, match="cannot be written"):
        write_splits([], [str(path), str(tmp_path / "missing" / "splits_final.json")], force=True)
    assert path.read_text() == "old"
    assert files(tmp_path) == ["splits_final.json"]


def test_without_raw_data_the_cases_come_from_the_preprocessed_copies(dataset, monkeypatch, tmp_path):
    raw, preprocessed = dataset
    (preprocessed / "gt_segmentations").mkdir()
    for case in CASES[:6]:
        (preprocessed / "gt_segmentations" / f"{case}.nii.gz").touch()
    (preprocessed / "dataset.json").write_text((raw / "dataset.json").read_text())
    monkeypatch.delenv("nnUNet_raw")
    working_directory = tmp_path / "elsewhere"  # an unset variable must not make the current folder the raw one
    working_directory.mkdir()
    (working_directory / "splits_final.json").write_text("[]")
    monkeypatch.chdir(working_directory)
    assert split("--labeled", "1", "--folds", "3") == 0
    assert json.loads((preprocessed / "splits_final.json").read_text()) == make_splits(CASES[:6], 1, 0, False, 3)
    assert (working_directory / "splits_final.json").read_text() == "[]"


def test_cases_of_an_explicit_listing(dataset):
    raw, preprocessed = dataset
    description = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps(description | {"dataset": {"y": {}, "x": {}}}))
    assert labeled_cases(str(raw), str(preprocessed)) == ["x", "y"]


def test_errors_of_the_command_are_one_sentence(dataset, capsys, monkeypatch):
    raw, preprocessed = dataset
    monkeypatch.chdir(raw)

    def error(*words):
        assert main(["split", *words]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        return captured.err

    assert "--labeled 99: fold 0 has only 16 cases" in error("-d", "907", "--labeled", "99")
    assert "906" in error("-d", "906", "--labeled", "4")
    assert f"did you mean '{NAME}'?" in error("-d", "Dataset907_Splitt", "--labeled", "4")
    (raw / "dataset.json").write_text("{}")
    assert "'file_ending'" in error("-d", "907", "--labeled", "4")
    os.rmdir(preprocessed)
    assert "nnUNetv2_plan_and_preprocess -d 907" in error("-d", "907", "--labeled", "4")
    monkeypatch.delenv("nnUNet_preprocessed")
    assert "nnUNet_preprocessed" in error("-d", NAME, "--labeled", "4")
    assert files(raw) == sorted(["labelsTr", "dataset.json", *(f"{case}.nii.gz" for case in CASES)])
