"""Meta-labels: what names, headers and files tell about a case, and where a slice lies in its scan."""

import csv
import json
import shutil

import nibabel
import numpy as np
import pytest
import SimpleITK
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_semicon.checks.dataset import check_dataset
from nnunet_semicon.cli.main import main
from nnunet_semicon.data.meta import FILE, extract, patients, training_table
from nnunet_semicon.data.splits import labeled_cases
from nnunet_semicon.errors import UserError
from nnunet_semicon.meta_labels.extract import find_info_cfg, patients_from_names, read_info_cfg, read_user_table
from nnunet_semicon.meta_labels.position import SliceAxis, is_backward
from nnunet_semicon.meta_labels.table import MetaTable, column
from tests.tiny import read_json, write_json, write_raw

NAME = "Dataset908_Meta"
CASES = [f"patient{p:03d}_frame{f:02d}" for p in range(4) for f in (1, 9)]


def product(prefixes, suffixes, separator="_"):
    return [f"{prefix}{separator}{suffix}" for prefix in prefixes for suffix in suffixes]


# --- patients from names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cases", "patient", "n_patients"),
    [
        (["patient001_frame01", "patient001_frame12", "patient002_frame01"], "patient001", 2),
        (product(["s01", "s02"], "ab"), "s01", 2),
        (product(["case-7", "case-8", "case-9"], ["left", "right"], "-"), "case-7", 3),
        (product([f"p{i:02d}" for i in range(6)], ["1", "2"]), "p00", 6),
        (product([f"p{i:02d}" for i in range(20)], "abc")[:-1], "p00", 20),  # the last patient lacks one scan
        ([*product([f"p{i:02d}" for i in range(20)], "ab"), "p77"], "p00", 21),  # and one has no second part
    ],
)
def test_patients_are_found_in_names(cases, patient, n_patients):
    found, source = patients_from_names(cases)
    assert list(found) == cases
    assert found[cases[0]] == found[cases[1]] == patient
    assert len(set(found.values())) == n_patients
    assert cases[0].removeprefix(patient) in source  # the suffix is shown


@pytest.mark.parametrize(
    "cases",
    [
        [f"hippocampus_{i:03d}" for i in range(1, 9)],
        ["hippocampus_001", "hippocampus_002"],
        [f"BRATS_{i:03d}" for i in range(20)],
        [f"case_{i:05d}" for i in range(20)],
        [f"s{i:04d}" for i in range(20)],
        product(["siteA", "siteB"], ["01", "02"]),
        product(["site1", "site2"], "ab"),
        product(["liver", "spleen"], ["1", "2"]),
        product(["s01", "s02"], ["1", "2"]),  # two numbers: either may count the patients
        product(["T1", "T2"], [f"{i:03d}" for i in range(30)]),
        product([f"p{i:02d}" for i in range(9)], ["1", "3"]),  # not a count
        product(["ct_train", "mr_train"], [f"{i}" for i in range(1001, 1021)]),
        product([f"p{i}" for i in range(40)], [f"{i}" for i in range(11)]),  # too many scans each
        [f"IXI{i:03d}-Guys-{1000 + i}" for i in range(20)],
        [f"BraTS-GLI-{i:05d}-100" for i in range(20)],
        ["a1_x", "a1_y", "a2_x", "a2_y", "b", "c", "d"],  # most names are of another kind
        [],
        ["scan"],
    ],
)
def test_nothing_is_read_into_names_that_may_mean_something_else(cases):
    found, source = patients_from_names(cases)
    assert found == {case: case for case in cases}
    assert source == "whole case names"


def test_phase_from_names():
    table = extract("", ["A0S9V9_ED", "A0S9V9_ES", "B1_ed", "REDUCED"]).table
    assert table.rows() == {
        "A0S9V9_ED": {"patient": "A0S9V9", "phase": "ED"},
        "A0S9V9_ES": {"patient": "A0S9V9", "phase": "ES"},
        "B1_ed": {"patient": "B1", "phase": "ED"},
        "REDUCED": {"patient": "REDUCED", "phase": None},
    }


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"^(\d\d)", {"01x1": "01", "01y2": "01", "02x1": "02"}),
        (r"^\d\d", {"01x1": "01", "01y2": "01", "02x1": "02"}),
        (r"(\d\dx)|q", {"01x1": "01x", "01y2": "01y2", "02x1": "02x"}),
    ],
)
def test_patients_by_regular_expression(pattern, expected):
    extracted = extract("", list(expected), patient_pattern=pattern)
    column = extracted.table.columns["patient"]
    assert {case: column.value(case) for case in expected} == expected
    assert pattern in column.source
    unmatched = "does not match 1 cases (01y2): each is a patient of its own"
    assert any(unmatched in note for note in extracted.notes) == ("x)|q" in pattern)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(unclosed", r"'\(unclosed' is not a regular expression"),
        ("study(\\d+)", r"matches none of the 8 cases \(patient000_frame01, "),
        ("x*", "matches none of the 8 cases"),  # only the empty text
    ],
)
def test_a_useless_regular_expression_is_refused(pattern, message):
    with pytest.raises(UserError, match=message):
        extract("", CASES, patient_pattern=pattern)


# --- the user's table --------------------------------------------------------------------------------------------


def test_json_and_csv_say_the_same(tmp_path):
    rows = {
        "a": {"site": "north, left", "scanner": "1", "contrast": "true"},
        "b": {"site": "south", "contrast": "false"},
        "c": {"scanner": "1.5"},
    }
    (tmp_path / "m.json").write_text(
        '{"a": {"site": " north, left", "scanner": 1, "contrast": true}, "b": {"site": "south", "scanner": null, '
        '"contrast": false}, "c": {"site": "", "scanner": 1.5}}'
    )
    (tmp_path / "rows.json").write_text(
        '[{"case": "a", "site": "north, left", "scanner": "1", "contrast": true}, {"contrast": "false", "case": "b", '
        '"site": "south", "scanner": ""}, {"case": "c", "scanner": 1.5}]'
    )
    (tmp_path / "comma.csv").write_text(
        'case,site,scanner,contrast\na,"north, left",1,true\n\nb,south,,false\nc,,1.5,\n'
    )
    (tmp_path / "semicolon.csv").write_bytes(
        b"\xef\xbb\xbfsite;case;scanner;contrast\r\nnorth, left;a;1;true\r\nsouth;b;;false\r\n;c;1.5;\r\n"
    )
    (tmp_path / "tab.csv").write_text(
        "case\tsite\tscanner\tcontrast\na\tnorth, left\t1\ttrue\nb\tsouth\t\tfalse\nc\t\t1.5\t"
    )
    for path in tmp_path.iterdir():
        table = read_user_table(str(path))
        assert table.rows == rows, path.name
        assert set(table.columns) == {"site", "scanner", "contrast"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.json", '{"a": {"x": 1}', "is not valid JSON"),
        ("m.json", '{"a": {"x": 1}, "a": {"x": 2}}', "lists case a twice"),
        ("m.json", '{"a": {"x": 1, "x": 2}}', "lists column x twice"),
        ("m.json", '[{"case": "a"}, {"case": "a"}]', "lists case a twice"),
        ("m.json", '[{"case": "a"}, {"x": 1}]', "entry 1 .* has no 'case'"),
        ("m.json", '{"a": "ED"}', 'case a .* has no columns, but "ED"'),
        ("m.json", '{"a": {"x": ["ED"]}}', r"column 'x' of case a .* holds \[\"ED\"\]"),
        ("m.json", '"a"', "neither an object nor a list"),
        ("m.csv", "", "has no column 'case' in its first line .empty."),
        ("m.csv", "Case,x\na,1\n", "has no column 'case'.*did you mean 'Case'"),
        ("m.csv", "case,x\na,1\nb,2\na,1\n", "lists case a twice"),
        ("m.csv", "case,x,x\na,1,2\n", "lists column x twice"),
        ("m.csv", "case,x,\na,1,2\n", "has a column without a name"),
        ("m.csv", "case,x\na,1\nb\n", "line 3 .* has 1 cells, the header 2"),
        ("m.csv", "case,x\n,1\n", "line 2 .* names no case"),
        ("m.csv", 'case,x\na,"1\n', "not valid CSV"),
        ("m.csv", "case,x\na,Universit\u00e4t\n".encode("latin-1"), "is not UTF-8 text .byte 18 is 0xe4."),
        ("m.json", '{"a": {"x": "\u00e4"}}'.encode("utf-16"), "is not UTF-8 text"),
    ],
)
def test_a_malformed_table_is_refused_with_its_name(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as error:
        read_user_table(str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def write_table(folder, rows, name="meta_labels.json"):
    write_json(folder / name, rows)


def test_a_users_table_beats_everything(tmp_path):
    write_table(tmp_path, {case: {"patient": "P" + case[9], "phase": case[-1]} for case in CASES})
    extracted = extract(str(tmp_path), CASES, patient_pattern="(patient...)")
    assert set(extracted.table.columns["patient"].values) == {"P0", "P1", "P2", "P3"}
    assert extracted.table.columns["phase"].values == ("1", "9")
    assert any("'patient' is taken from meta_labels.json, not from regular" in note for note in extracted.notes)
    assert extracted.files == (str(tmp_path / "meta_labels.json"),)


def test_cases_of_the_table_and_of_the_dataset(tmp_path):
    rows = {case: {"site": "x" if case < "patient002" else None} for case in CASES}
    write_table(tmp_path, rows | {"patient777_frame01": {"site": "x"}})
    extracted = extract(str(tmp_path), CASES)
    assert len(extracted.table.columns["site"].codes) == 4  # an explicit empty value is unknown
    assert any("1 cases that the dataset does not have (patient777_frame01)" in note for note in extracted.notes)

    del rows["patient003_frame09"], rows["patient001_frame01"]
    write_table(tmp_path, rows | {"patient001_frame1": {}})
    message = r"no row for 2 of 8 cases \(patient001_frame01, patient003_frame09\).*did you mean 'patient001_frame1'"
    with pytest.raises(UserError, match=message):
        extract(str(tmp_path), CASES)


def test_two_tables_and_a_position_column_are_refused(tmp_path):
    write_table(tmp_path, {case: {"position": 1} for case in CASES})
    with pytest.raises(UserError, match="has a column 'position', a name that is ours"):
        extract(str(tmp_path), CASES)
    (tmp_path / "meta_labels.csv").write_text("case,site\n")
    with pytest.raises(UserError, match=r"there are both .*meta_labels\.json and .*meta_labels\.csv"):
        extract(str(tmp_path), CASES)


# --- which columns can be labels ---------------------------------------------------------------------------------


def test_columns_that_cannot_serve_as_a_label_are_kept_and_explained():
    cases = [f"c{i}" for i in range(12)]
    table = MetaTable(
        tuple(cases),
        {
            "patient": column({case: case for case in cases}, "names"),
            "site": column(dict.fromkeys(cases, "north"), "file"),
            "age": column({case: str(40 + i % 8) for i, case in enumerate(cases)}, "file"),
            "scanner": column({case: str(i % 6) for i, case in enumerate(cases)}, "file"),
            "phase": column({"c0": "ED", "c1": "ES"}, "file"),
            "empty": column({}, "file"),
        },
    )
    assert table.labels() == ("patient", "scanner", "phase")
    assert table.why_no_label("site") == "there is only one value, 'north'"
    assert table.why_no_label("age") == "8 values for 12 cases are nearly one per case, no categories"
    assert table.why_no_label("empty") == "no case has a value"
    assert MetaTable.from_dict(json.loads(json.dumps(table.to_dict()))) == table
    few = table.restricted(["c0", "c2"])
    assert few.columns["phase"].values == ("ED",)
    assert few.why_no_label("phase") == "there is only one value, 'ED'"
    with pytest.raises(ValueError, match="must start with 'patient'"):
        MetaTable(("a",), {"site": column({}, "file")})


# --- ACDC --------------------------------------------------------------------------------------------------------


def write_info(folder, patient, text):
    (folder / patient).mkdir(parents=True)
    (folder / patient / "Info.cfg").write_text(text)


@pytest.mark.parametrize("below", ["", "training", "database/training"])
def test_info_cfg_of_acdc(tmp_path, below):
    for p, group in enumerate(["NOR", "DCM", "DCM"]):
        write_info(tmp_path / below, f"patient{p:03d}", f"ED: 1\nES: 9\nGroup: {group}\nHeight: 184.0\nNbFrame: 30\n")
    (tmp_path / "patient003.cfg").write_text("ED: 1\nES: 11\n")
    extracted = extract("", CASES, info_cfg=str(tmp_path))
    table = extracted.table
    assert table.rows()["patient000_frame01"] == {"patient": "patient000", "phase": "ED", "group": "NOR"}
    assert table.rows()["patient001_frame09"] == {"patient": "patient001", "phase": "ES", "group": "DCM"}
    assert table.rows()["patient003_frame09"] == {"patient": "patient003", "phase": None, "group": None}
    assert len(extracted.files) == 4
    assert extract(str(tmp_path), CASES).table == table  # lying in the raw dataset


def test_frames_that_are_no_frame_numbers_give_no_phase(tmp_path):
    write_info(tmp_path, "patient000", "ED: 3\nES: 12\nGroup: NOR\n")
    extracted = extract("", CASES, info_cfg=str(tmp_path))
    assert "phase" not in extracted.table.columns
    assert any("Info.cfg gives no phase" in note for note in extracted.notes)


def test_errors_of_info_cfg(tmp_path):
    with pytest.raises(UserError, match=r"--info-cfg .*nowhere is not a folder"):
        extract("", CASES, info_cfg=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"there is no Info\.cfg below"):
        extract("", CASES, info_cfg=str(tmp_path))
    write_info(tmp_path, "p1", "ED: one\n")
    with pytest.raises(UserError, match=r"belong to p1, none of which is a patient of this dataset \(patient000, "):
        extract("", CASES, info_cfg=str(tmp_path))
    with pytest.raises(UserError, match=r"Info\.cfg says 'ED: one': expected the number of a frame"):
        read_info_cfg(str(tmp_path / "p1" / "Info.cfg"))
    write_info(tmp_path / "again", "p1", "nothing\n")
    with pytest.raises(UserError, match="none of the lines"):
        read_info_cfg(str(tmp_path / "again" / "p1" / "Info.cfg"))
    with pytest.raises(UserError, match="patient p1 has two files"):
        find_info_cfg(str(tmp_path))


# --- what a training uses ----------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A raw dataset with small images of two patients' frames, and an empty preprocessed folder; returns both."""
    raw, preprocessed = tmp_path / "raw" / NAME, tmp_path / "preprocessed" / NAME
    preprocessed.mkdir(parents=True)
    write_raw(raw.parent, NAME, n_labeled=4, n_unlabeled=2, shape=(6, 12, 10))
    monkeypatch.setenv("nnUNet_raw", str(raw.parent))
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed.parent))
    monkeypatch.delenv("nnUNet_results", raising=False)
    return raw, preprocessed


ALL = [f"patient{p:03d}_frame{f:02d}" for p in (1, 2, 3) for f in (1, 2)]


def meta(*words):
    return main(["meta", "-d", "908", *words])


def error_of(capsys, *words):
    capsys.readouterr()
    assert meta(*words) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_without_a_written_table_names_and_files_count(dataset):
    raw, preprocessed = map(str, dataset)
    table = training_table(raw, preprocessed, ALL)
    assert table.columns["patient"].values == ("patient001", "patient002", "patient003")
    assert training_table("", preprocessed, ALL) == table
    write_table(dataset[0], {case: {"site": case[-1]} for case in ALL})
    assert training_table(raw, preprocessed, ALL).labels() == ("patient", "site")
    assert list(training_table("", preprocessed, ALL).columns) == ["patient"]


def test_the_written_table_is_used_until_something_changes(dataset, tmp_path, monkeypatch, capsys):
    raw, preprocessed = dataset
    info = tmp_path / "acdc"
    write_info(info, "1_frame", "Group: NOR\n")
    write_table(raw, {case: {"site": case[9]} for case in ALL})
    assert meta("--patient-pattern", r"(\d_frame)", "--info-cfg", str(info)) == 0
    paths = str(raw), str(preprocessed)
    table = training_table(*paths, ALL)
    assert table.columns["patient"].values == ("1_frame", "2_frame", "3_frame")
    assert list(table.columns) == ["patient", "site", "group"]
    assert training_table(*paths, ALL[:2]).cases == tuple(ALL[:2])
    assert training_table("", str(preprocessed), ALL) == table  # the raw dataset is elsewhere
    assert patients(*paths, ALL)["patient001_frame02"] == "1_frame"

    command = rf"run: semicon meta -d 908 --patient-pattern '\(\\d_frame\)' --info-cfg {info}$"
    with pytest.raises(UserError, match=rf"meta_table\.json lacks 1 of 7 cases \(new\); {command}"):
        training_table(*paths, [*ALL, "new"])
    (info / "1_frame" / "Info.cfg").write_text("Group: DCM\n")
    with pytest.raises(UserError, match=rf"made before .*Info\.cfg changed; {command}"):
        training_table(*paths, ALL)
    shutil.rmtree(info)  # no longer reachable
    assert training_table(*paths, ALL) == table
    write_table(raw, {case: {"site": "1"} for case in ALL})
    with pytest.raises(UserError, match=rf"made before .*meta_labels\.json changed; {command}"):
        training_table(*paths, ALL)
    assert main(["split", "-d", "908", "--labeled", "1", "--folds", "2"]) == 1  # a patient might be torn
    assert "meta_labels.json changed" in capsys.readouterr().err
    problems = [finding.text for finding in check_dataset("908") if finding.status == "problem"]
    assert any("meta_labels.json changed" in text for text in problems)

    assert meta() == 0
    assert training_table(*paths, ALL).columns["patient"].values == ("patient001", "patient002", "patient003")
    (raw / "meta_labels.json").unlink()
    (raw / "meta_labels.csv").write_text("case,site\n")
    with pytest.raises(UserError, match=r"made before .*meta_labels\.csv was added; run: semicon meta -d 908$"):
        training_table(*paths, ALL)
    (raw / "meta_labels.csv").unlink()
    for broken in ("{", "[]", '{"rows": {}}', '{"columns": {}, "rows": {}, "files": [], "patient_pattern": null}'):
        (preprocessed / FILE).write_text(broken)
        with pytest.raises(UserError, match=r"is not a meta table .*; run: semicon meta -d 908$"):
            training_table(*paths, ALL)


def test_a_split_never_tears_a_patient_of_the_table(dataset):
    raw, preprocessed = dataset
    # one patient under several names
    write_table(raw, {case: {"patient": "A" if case < "patient002_frame02" else "B"} for case in ALL})
    assert main(["split", "-d", "908", "--labeled", "1", "--folds", "2"]) == 0
    folds = json.loads((preprocessed / "splits_final.json").read_text())
    assert sorted(fold["val"] for fold in folds) == [ALL[:3], ALL[3:4]]


# --- the command -------------------------------------------------------------------------------------------------


def test_the_command_prints_and_writes_the_table(dataset, capsys, tmp_path):
    raw, preprocessed = dataset
    write_table(
        raw, {case: {"phase": "ED" if case[-1] == "1" else "ES", "site": "x", "age": i} for i, case in enumerate(ALL)}
    )
    assert meta("--out", str(tmp_path / "out.csv"), "--figure") == 0
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == f"{NAME}: 6 cases (4 in imagesTr, 2 in imagesUn)"
    patient = next(line for line in lines if line.startswith("patient "))
    assert patient.startswith(
        "patient 3 0 yes case names before their time point (_frame01, _frame02) patient001 (2), "
    )
    assert "phase 2 0 yes meta_labels.json ED (3), ES (3)" in lines
    assert "site is no label: there is only one value, 'x'" in lines
    assert "age is no label: 6 values for 6 cases are nearly one per case, no categories" in lines
    assert "patient001_frame02 patient001 ES x 1" in lines
    assert "plans, which are not there yet" in out
    assert training_table(str(raw), str(preprocessed), ALL).labels() == ("patient", "phase")
    figure = SimpleITK.ReadImage(str(preprocessed / "meta_labels.png"))
    assert min(figure.GetSize()) > 300
    with open(tmp_path / "out.csv", newline="") as file:
        assert list(csv.reader(file))[:2] == [
            ["case", "patient", "phase", "site", "age"],
            [ALL[0], "patient001", "ED", "x", "0"],
        ]
    shutil.copy(tmp_path / "out.csv", raw / "meta_labels.csv")  # it has the form of a user's table
    (raw / "meta_labels.json").unlink()
    assert extract(str(raw), ALL).table.rows() == training_table("", str(preprocessed), ALL).rows()
    assert sorted(path.name for path in preprocessed.iterdir()) == ["meta_labels.png", "meta_table.json"]


def test_header_fields_are_looked_at(dataset, capsys):
    raw, preprocessed = dataset
    for i, path in enumerate(sorted((raw / "imagesTr").iterdir()) + sorted((raw / "imagesUn").iterdir())):
        image = nibabel.load(path)
        array, affine, header = np.asarray(image.dataobj), image.affine, image.header
        header["descrip"], header["aux_file"], header["intent_name"] = f"scanner {i % 2}", f"id {i}", "mri"
        nibabel.save(nibabel.Nifti1Image(array, affine, header), path)
    assert meta() == 0
    column = training_table("", str(preprocessed), ALL).columns["header_descrip"]
    assert column.values == ("scanner 0", "scanner 1")
    assert column.value("patient003_frame02") == "scanner 1"  # from imagesUn
    out = capsys.readouterr().out
    assert "aux_file (6 values in 6 images, nearly one per case), db_name (empty)" in out
    assert "intent_name (always 'mri')" in out


def test_files_stored_the_other_way_around_are_counted(dataset, capsys):
    raw, _ = dataset
    assert meta() == 0
    assert "all 6 image headers say that slices are stored in the same direction" in capsys.readouterr().out
    path = str(raw / "imagesTr" / f"{ALL[0]}_0000.nii.gz")
    image = SimpleITK.ReadImage(path)
    image.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, -1))
    SimpleITK.WriteImage(image, path)
    assert meta() == 0
    assert "1 of 6 images store their slices in the opposite direction" in capsys.readouterr().out


def test_without_raw_data(dataset, monkeypatch, capsys):
    raw, preprocessed = dataset
    shutil.copytree(raw / "labelsTr", preprocessed / "gt_segmentations")
    shutil.copy(raw / "dataset.json", preprocessed)
    (preprocessed / "nnUNetPlans_2d_unlabeled").mkdir()
    write_json(preprocessed / "nnUNetPlans_2d_unlabeled" / "manifest.json", {"plans_hash": "", "cases": {"u1": []}})
    monkeypatch.delenv("nnUNet_raw")
    assert "--figure needs the images" in error_of(capsys, "--figure")
    assert meta() == 0
    assert "5 cases (4 in imagesTr, 1 in imagesUn)" in capsys.readouterr().out
    assert training_table("", str(preprocessed), ["u1"]).cases == ("u1",)


def test_without_a_preprocessed_folder_the_table_is_only_shown(dataset, capsys):
    _, preprocessed = dataset
    preprocessed.rmdir()
    assert meta() == 0
    out = capsys.readouterr().out
    assert f"not written, since there is no folder {preprocessed}" in out
    assert not preprocessed.exists()


def test_errors_of_the_command_are_one_sentence_and_nothing_is_written(dataset, capsys, tmp_path):
    raw, preprocessed = dataset
    assert "matches none of the 6 cases" in error_of(capsys, "--patient-pattern", "nothing")
    assert "is not a folder" in error_of(capsys, "--info-cfg", str(tmp_path / "x"))
    assert "expected a name that ends with .png" in error_of(capsys, "--figure", str(tmp_path / "x.pdf"))
    assert "there is no folder" in error_of(capsys, "--figure", str(tmp_path / "x" / "y.png"))
    assert "there is no folder" in error_of(capsys, "--out", str(tmp_path / "x" / "out.csv"))
    (tmp_path / "out.csv").write_text("mine")
    assert "exists: remove it or choose another name" in error_of(capsys, "--out", str(tmp_path / "out.csv"))
    assert (tmp_path / "out.csv").read_text() == "mine"
    assert "run first: nnUNetv2_plan_and_preprocess -d 908 -c 2d" in error_of(capsys, "-p", "nnUNetResEncPlans")
    for name in ("a", "b"):
        write_json(preprocessed / f"{name}.json", {"configurations": {}})
    assert "nnUNetPlans.json does not exist, but other plans do; name one of them with -p: a, b" in error_of(capsys)
    (preprocessed / "a.json").unlink()
    assert "c.json does not exist, but other plans do; name one of them with -p: b" in error_of(capsys, "-p", "c")
    assert "b.json is not a plans file" in error_of(capsys)
    (preprocessed / "b.json").rename(preprocessed / "nnUNetPlans.json")
    (preprocessed / "nnUNetPlans.json").write_text("{")
    assert "nnUNetPlans.json cannot be read" in error_of(capsys)
    (preprocessed / "nnUNetPlans.json").unlink()
    write_table(raw, {ALL[0]: {"site": 1}})
    assert "has no row for 5 of 6 cases" in error_of(capsys)
    (raw / "meta_labels.json").unlink()
    assert list(preprocessed.iterdir()) == []
    (raw / "imagesTr" / f"{ALL[0]}_0000.nii.gz").write_bytes(b"no image")
    assert f"{ALL[0]}_0000.nii.gz cannot be read" in error_of(capsys, "--figure")
    assert not (preprocessed / "meta_labels.png").exists()


def test_with_plans(tiny, tmp_path, monkeypatch, capsys):
    data = tiny.fresh(tmp_path)
    data.use(monkeypatch)
    assert main(["meta", "-d", "901", "--figure"]) == 0
    out = capsys.readouterr().out
    assert "transpose_forward = [0, 1, 2]" in out
    assert "2d, 3d_fullres:  3 partitions  (clamp(min(" in out
    assert (data.preprocessed_dataset / "meta_labels.png").stat().st_size > 10000
    found = {finding.text: finding.status for finding in check_dataset("901")}  # the new file disturbs nothing
    assert "problem" not in found.values()
    assert "patients: 3, with 6 cases (case names before their time point (_frame01, _frame02))" in found


def test_with_the_only_plans_that_there_are(tiny, tmp_path, monkeypatch, capsys):
    data = tiny.fresh(tmp_path)
    data.use(monkeypatch)
    name = "nnUNetResEncUNetMPlans"
    write_json(data.preprocessed_dataset / f"{name}.json", read_json(data.plans_file) | {"plans_name": name})
    assert main(["meta", "-d", "901"]) == 0
    assert name not in capsys.readouterr().out
    data.plans_file.unlink()
    assert main(["meta", "-d", "901"]) == 0
    out = capsys.readouterr().out
    assert f"plans: {name}, the only ones that there are\n" in out
    assert "2d, 3d_fullres:  3 partitions" in out


def test_real_acdc(real_data, tmp_path):
    folder = real_data / "Dataset027_ACDC"
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    cases = labeled_cases(str(folder), "")
    table = training_table(str(folder), str(tmp_path), cases)
    assert {name: len(column.values) for name, column in table.columns.items()} == {"patient": 80, "phase": 2}
    assert table.labels() == ("patient", "phase")
    assert table.columns["phase"].counts() == {"ED": 80, "ES": 80}
    assert len(extract("", cases).table.columns["patient"].values) == 80  # names alone


# --- positions ---------------------------------------------------------------------------------------------------

SLICES = 10
EMPTY = (0, 1, 9)


def preprocessed_axis(path, transpose_forward, spacing):
    """Run nnU-Net's preprocessor and return the slice axis of the case."""
    resampling = "resample_data_or_seg_to_shape"
    options = {"order": 1, "order_z": 0, "force_separate_z": None}
    plans = PlansManager(
        {
            "plans_name": "nnUNetPlans",
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": transpose_forward,
            "foreground_intensity_properties_per_channel": {"0": {}},
            "configurations": {
                "c": {
                    "architecture": {},
                    "preprocessor_name": "DefaultPreprocessor",
                    "spacing": spacing,
                    "normalization_schemes": ["ZScoreNormalization"],
                    "use_mask_for_norm": [False],
                    "resampling_fn_data": resampling,
                    "resampling_fn_data_kwargs": {"is_seg": False, **options},
                    "resampling_fn_seg": resampling,
                    "resampling_fn_seg_kwargs": {"is_seg": True, **options},
                }
            },
        }
    )
    configuration = plans.get_configuration("c")
    preprocessor = configuration.preprocessor_class(verbose=False)
    data, _, properties = preprocessor.run_case([str(path)], None, plans, configuration, {"file_ending": ".nii.gz"})
    return SliceAxis.from_properties(properties, data.shape[1], transpose_forward[0])


def write_scan(path, array, sagittal=False, flipped=False):
    """Write slices (Z, Y, X); sagittal: the slice axis is the last of the array; flipped: stored from the other end."""
    if flipped:
        array = array[::-1]
    direction = np.diag([1.0, 1.0, -1.0 if flipped else 1.0])
    spacing = [1.0, 1.0, 4.0]
    if sagittal:  # array (Y, X, Z), that is x, y, z of the file run along the patient's z, x, y
        array = array.transpose(1, 2, 0)
        direction, spacing = direction[:, [2, 0, 1]], [4.0, 1.0, 1.0]
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing(spacing)
    image.SetDirection(direction.flatten().tolist())
    SimpleITK.WriteImage(image, str(path))


@pytest.mark.parametrize("spacing", [[1.5, 1.5], [1.7, 1.0, 1.0]], ids=["2d", "resampled along the slice axis"])
@pytest.mark.parametrize("sagittal", [False, True])
def test_a_cropped_and_a_flipped_copy_of_a_scan_have_the_same_partitions(tmp_path, sagittal, spacing):
    scan = np.random.default_rng(0).uniform(1, 2, (SLICES, 14, 12)).astype(np.float32)
    cropped = scan.copy()
    cropped[list(EMPTY)] = 0  # nnU-Net crops them away
    path = tmp_path / "scan.nii.gz"
    for array, first in ((scan, 0), (cropped, 2)):
        for flipped in (False, True):
            write_scan(path, array, sagittal, flipped)
            axis = preprocessed_axis(path, [2, 0, 1] if sagittal else [0, 1, 2], spacing)
            kept = SLICES - (len(EMPTY) if first else 0)
            assert axis.cropped == kept
            assert axis.backward == flipped
            assert (axis.preprocessed == kept) == (len(spacing) == 2)
            for index in range(first, first + kept):  # the slice of the patient
                stored = SLICES - 1 - index if flipped else index
                center = (stored - axis.crop_start + 0.5) * axis.preprocessed / kept
                for partitions in range(2, 8):
                    assert axis.partition(center, partitions) == int((index + 0.5) * partitions / SLICES)


def test_readers_agree_on_the_direction(tmp_path):
    path = str(tmp_path / "scan.nii.gz")
    scan = np.random.default_rng(0).uniform(1, 2, (4, 5, 6)).astype(np.float32)
    for flipped in (False, True):
        write_scan(path, scan, flipped=flipped)
        _, itk = SimpleITKIO().read_images([path])
        _, other = NibabelIO().read_images([path])
        assert [is_backward(itk, axis) for axis in range(3)] == [is_backward(other, axis) for axis in range(3)]
        assert is_backward(itk, 0) == flipped
        reoriented, properties = NibabelIOWithReorient().read_images([path])
        assert not is_backward(properties, 0)  # its array runs to the head whatever the file does
        assert np.allclose(reoriented[0, 0].sum(), scan[0].sum())


def test_headers_without_a_direction_change_nothing():
    assert not is_backward({"spacing": (999, 1, 1)}, 0)
    assert not is_backward({"sitk_stuff": {"direction": (-1.0, 0.0, 0.0, -1.0)}}, 0)  # a 2D image
    with_channels = np.diag([1.0, 1.0, -1.0, 1.0])
    assert is_backward({"sitk_stuff": {"direction": tuple(with_channels.flatten())}}, 0)


def test_oblique_stacks_of_one_kind_agree():
    """Short-axis stacks of the heart lie near (left, front, foot): the largest component differs between patients."""
    rng = np.random.default_rng(0)
    for towards_the_apex in (1, -1):
        for _ in range(200):
            slices = towards_the_apex * np.array([0.6, -0.5, -0.6]) + rng.normal(0, 0.2, 3)
            direction = np.eye(3)
            direction[:, 2] = slices / np.linalg.norm(slices)
            found = is_backward({"sitk_stuff": {"direction": tuple(direction.flatten())}}, 0)
            assert found == (towards_the_apex == 1)
