"""``semicon evaluate``: a superset of nnU-Net's summary, missing classes counted, one sentence for a mistake."""

import csv
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK
from nnunetv2.evaluation.evaluate_predictions import load_summary_json
from scipy.ndimage import gaussian_filter

from nnunet_semicon.cli.main import main
from tests.tiny import read_json, write_image, write_json

LABELS = {"background": 0, "ventricle": 1, "myocardium": 2}
SPACING = (3.0, 1.5, 1.0)
DIAGONAL_MM = math.hypot(8 * 3.0, 12 * 1.5, 14 * 1.0)


def segmentation(seed, shape=(8, 12, 14), labels=3):
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return np.digitize(noise, np.quantile(noise, np.linspace(0, 1, labels + 1)[1:-1])).astype(np.uint8)


@pytest.fixture
def folders(tmp_path):
    """Predictions and references of three cases; the first reference lacks class 2, the second prediction class 1."""
    for seed in range(3):
        prediction, reference = segmentation(seed), segmentation(10 + seed)
        if seed == 0:
            reference[reference == 2] = 1
        if seed == 1:
            prediction[prediction == 1] = 0
        write(tmp_path / "pred" / f"case_{seed}.nii.gz", prediction)
        write(tmp_path / "labelsTr" / f"case_{seed}.nii.gz", reference)
    write_json(tmp_path / "dataset.json", {"labels": LABELS, "channel_names": {"0": "MRI"}, "file_ending": ".nii.gz"})
    return tmp_path


def write(file, array, spacing=SPACING):
    file.parent.mkdir(exist_ok=True, parents=True)
    write_image(array, file, spacing)


def evaluate(folders, *words):
    return main(["evaluate", str(folders / "pred"), str(folders / "labelsTr"), *map(str, words)])


def content(folders):
    return read_json(folders / "pred" / "evaluation.json")


def stock_summary(folders, dataset=LABELS):
    """What nnU-Net itself writes, by its own command."""
    values = [value for value in dataset.values() if value != 0]
    command = "from nnunetv2.evaluation.evaluate_predictions import evaluate_simple_entry_point as run; run()"
    words = [folders / "labelsTr", folders / "pred", "-l", *values, "-np", 1, "-o", folders / "stock.json"]
    subprocess.run([sys.executable, "-c", command, *map(str, words)], check=True, capture_output=True)
    return read_json(folders / "stock.json")


def test_everything_of_nnunets_summary_is_there_unchanged(folders):
    assert evaluate(folders, "--metrics", "NSD=2") == 0
    ours, stock = content(folders), stock_summary(folders)
    for mine, theirs in zip(ours["metric_per_case"], stock["metric_per_case"], strict=True):
        assert {**mine, "metrics": None} | {**theirs, "metrics": None} == {**mine, "metrics": None}
        for key, metrics in theirs["metrics"].items():
            assert {name: mine["metrics"][key][name] for name in metrics} == metrics
    for key in ("1", "2"):
        assert {name: ours["mean"][key][name] for name in stock["mean"][key]} == pytest.approx(stock["mean"][key])
    shared = {name: ours["foreground_mean"][name] for name in stock["foreground_mean"]}
    assert shared == pytest.approx(stock["foreground_mean"])
    assert load_summary_json(str(folders / "pred" / "evaluation.json"))["mean"][1]["Dice"] == stock["mean"]["1"]["Dice"]


def test_a_missing_class_is_counted_and_penalized_but_never_a_silent_zero(folders, capsys):
    assert evaluate(folders) == 0
    of_class = content(folders)["semicon"]["summary"]
    cases = {entry["case"]: entry["metrics"] for entry in content(folders)["metric_per_case"]}
    assert of_class["1"]["missing_in_prediction"] == ["case_1"]
    assert of_class["2"]["missing_in_reference"] == ["case_0"]
    assert cases["case_1"]["1"]["Dice"] == 0  # nnU-Net's
    assert cases["case_1"]["1"]["DSC"] is None
    assert cases["case_1"]["1"]["HD95_mm"] is None
    present = [cases["case_0"]["1"], cases["case_2"]["1"]]
    means, penalized = of_class["1"]["mean"], of_class["1"]["penalized_mean"]
    for name, price in (("DSC", 0), ("HD95_mm", DIAGONAL_MM), ("ASD_voxel", math.hypot(8, 12, 14))):
        values = [metrics[name] for metrics in present]
        assert means[name] == pytest.approx(np.mean(values))
        assert penalized[name] == pytest.approx(np.mean([*values, price]))
    assert penalized["VE_ml"] is None
    printed = capsys.readouterr().out
    assert "ventricle is missing in the prediction of case_1." in printed
    assert "myocardium is missing in the reference of case_0." in printed
    titles = [line.split() for line in printed.splitlines() if line.split()[:1] == ["class"]]
    assert [line.count("pen.") for line in titles] == [5, 5]  # DSC, Jaccard and three distances, in mm and in voxels


def test_without_a_missing_class_the_table_has_one_mean(folders, capsys):
    for seed in range(3):
        write(folders / "labelsTr" / f"case_{seed}.nii.gz", segmentation(seed))
        write(folders / "pred" / f"case_{seed}.nii.gz", segmentation(seed))
    assert evaluate(folders, "--metrics", "NSD=1") == 0
    printed = capsys.readouterr().out
    assert "pen." not in printed
    lines = [line.split() for line in printed.splitlines()]
    titles = next(line for line in lines if line[:1] == ["class"])
    values = dict(zip(titles, next(line for line in lines if line[:1] == ["ventricle"]), strict=True))
    assert (values["cases"], values["missing"]) == ("3", "0")
    assert (values["DSC"], values["HD95"], values["NSD_1mm"]) == ("1.000", "0.00", "1.000")


def test_a_class_that_is_in_no_file_is_absent_not_missing(folders):
    for folder in ("pred", "labelsTr"):
        for seed in range(3):
            write(folders / folder / f"case_{seed}.nii.gz", np.minimum(segmentation(seed), 1))
    assert evaluate(folders) == 0
    of_class = content(folders)["semicon"]["summary"]["2"]
    assert (of_class["absent_in_both"], of_class["measured"]) == (3, 0)
    assert of_class["mean"]["DSC"] is of_class["penalized_mean"]["DSC"] is None
    assert content(folders)["semicon"]["summary"]["1"]["mean"]["DSC"] == 1


def test_volume_error_has_a_sign_and_units(folders):
    reference = np.zeros((8, 12, 14), np.uint8)
    reference[2:6, 2:6, 2:6] = 1
    reference[0, 0, 0] = 2
    prediction = reference.copy()
    prediction[2, 2:6, 2:6] = 0
    for seed in range(3):
        write(folders / "labelsTr" / f"case_{seed}.nii.gz", reference)
        write(folders / "pred" / f"case_{seed}.nii.gz", prediction)
    assert evaluate(folders) == 0
    mean = content(folders)["mean"]["1"]
    assert mean["VE_percent"] == pytest.approx(-25)
    assert mean["VE_ml"] == pytest.approx(-16 * 4.5 / 1000)
    assert mean["HD_mm"] == pytest.approx(3)
    assert mean["HD_voxel"] == pytest.approx(1)


def test_regions_and_ignore_label_are_those_of_nnunet(folders):
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    dataset = {"labels": labels, "regions_class_order": [1, 2], "channel_names": {"0": "MRI"}, "file_ending": ".nii.gz"}
    write_json(folders / "dataset.json", dataset)
    for seed in range(3):
        write(folders / "labelsTr" / f"case_{seed}.nii.gz", segmentation(10 + seed, labels=4))
    assert evaluate(folders) == 0
    case = content(folders)["metric_per_case"][2]
    reference, prediction = segmentation(12, labels=4), segmentation(2)
    counted = reference != 3
    whole = [(np.isin(array, (1, 2)) & counted) for array in (prediction, reference)]
    assert case["metrics"]["(1, 2)"]["DSC"] == pytest.approx(
        2 * (whole[0] & whole[1]).sum() / (whole[0].sum() + whole[1].sum())
    )
    assert case["metrics"]["(1, 2)"]["DSC"] == case["metrics"]["(1, 2)"]["Dice"]
    assert content(folders)["semicon"]["class_names"] == {"(1, 2)": "whole", "2": "core"}


def test_2d_images_are_measured_in_2d(folders):
    dataset = {"labels": LABELS, "channel_names": {"0": "gray"}, "file_ending": ".png"}
    write_json(folders / "dataset.json", dataset)
    for folder, seed in (("pred", 1), ("labelsTr", 2)):
        image = SimpleITK.GetImageFromArray(segmentation(seed, (20, 30)))
        SimpleITK.WriteImage(image, str(folders / folder / "case_9.png"))
    assert evaluate(folders) == 0
    metrics = content(folders)["metric_per_case"][0]["metrics"]["1"]
    from medpy.metric.binary import hd95

    assert metrics["HD95_mm"] == pytest.approx(hd95(segmentation(1, (20, 30)) == 1, segmentation(2, (20, 30)) == 1))


def test_csv_has_one_line_per_case_and_class(folders):
    assert evaluate(folders, "--out", folders / "sub" / "mine.json") == 0
    with open(folders / "sub" / "mine.csv") as file:
        lines = list(csv.DictReader(file))
    assert [(line["case"], line["class"]) for line in lines[:2]] == [("case_0", "ventricle"), ("case_0", "myocardium")]
    assert len(lines) == 6
    assert lines[1]["DSC"] == ""
    assert lines[1]["missing_in"] == "reference"
    assert (
        float(lines[0]["HD95_mm"])
        == read_json(folders / "sub" / "mine.json")["metric_per_case"][0]["metrics"]["1"]["HD95_mm"]
    )


def sentence(capsys):
    """The one line on stderr after the progress bar."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("semicon evaluate: ")]
    assert len(lines) == 1
    return lines[0]


def damage(file):
    file.write_bytes(file.read_bytes()[:40])


MISTAKES = {
    "no prediction": (lambda f: (f / "pred/case_1.nii.gz").unlink(), "has no prediction for case_1"),
    "no reference": (lambda f: (f / "labelsTr/case_1.nii.gz").unlink(), "has no reference for case_1"),
    "shape": (lambda f: write(f / "pred/case_1.nii.gz", segmentation(1)[1:]), "case case_1: the shape"),
    "spacing": (lambda f: write(f / "pred/case_1.nii.gz", segmentation(1), (1, 1, 1)), "case case_1: the spacing"),
    "label": (lambda f: write(f / "pred/case_1.nii.gz", segmentation(1) * 3), "case_1.nii.gz holds the label 3, 6"),
    "fraction": (lambda f: write(f / "pred/case_1.nii.gz", segmentation(1) / np.float32(2)), "that are no integers"),
    "first damaged": (lambda f: damage(f / "labelsTr/case_0.nii.gz"), "case_0.nii.gz cannot be read"),
    "damaged": (lambda f: damage(f / "labelsTr/case_1.nii.gz"), "case_1.nii.gz cannot be read"),
    "empty": (lambda f: [file.unlink() for file in (f / "pred").iterdir()], "has no segmentation"),
    "no dataset.json": (lambda f: (f / "dataset.json").unlink(), "no dataset.json beside or above"),
    "no ending": (lambda f: write_json(f / "dataset.json", {"labels": LABELS}), "has no 'file_ending'"),
    "no labels": (lambda f: write_json(f / "dataset.json", {"file_ending": ".nii.gz"}), "has no labels that nnU-Net"),
    "no list": (lambda f: write_json(f / "dataset.json", []), "has no 'file_ending'"),
    "broken dataset.json": (lambda f: (f / "dataset.json").write_text("{"), "dataset.json is not valid JSON"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_writes_nothing(folders, capsys, mistake):
    change, expected = MISTAKES[mistake]
    change(folders)
    assert evaluate(folders) == 1
    assert expected in sentence(capsys)
    assert not list(folders.rglob("*evaluation*"))


@pytest.mark.parametrize("metric", ["NSD", "NSD=-1", "NSD=nan", "ASD=1"])
def test_an_unknown_metric_is_one_sentence(folders, capsys, metric):
    assert evaluate(folders, "--metrics", metric) == 1
    assert f"--metrics {metric}: expected NSD with a tolerance" in sentence(capsys)


def test_the_csv_never_replaces_the_json(folders, capsys):
    assert evaluate(folders, "--out", folders / "x.csv") == 1
    assert "expected a file ending in .json" in sentence(capsys)
    assert evaluate(folders, "--pseudo-labels") == 1
    assert "leave out REF" in sentence(capsys)


def test_the_origin_counts_too(folders, capsys):
    image = SimpleITK.GetImageFromArray(segmentation(1))
    image.SetSpacing(SPACING[::-1])
    image.SetOrigin((0, 0, 5))
    SimpleITK.WriteImage(image, str(folders / "pred" / "case_1.nii.gz"))
    assert evaluate(folders) == 1
    assert "case case_1: the origin" in sentence(capsys)


def test_chill_allows_references_without_prediction(folders):
    (folders / "pred" / "case_1.nii.gz").unlink()
    assert evaluate(folders, "--chill") == 0
    assert [entry["case"] for entry in content(folders)["metric_per_case"]] == ["case_0", "case_2"]


# --- result folders -------------------------------------------------------------------------------------------------


@pytest.fixture
def model(folders, monkeypatch):
    """A model folder with two folds; the validation of the second one is not finished."""
    monkeypatch.setenv("nnUNet_preprocessed", str(folders / "preprocessed"))
    truth = folders / "preprocessed" / "Dataset901_Tiny" / "gt_segmentations"
    truth.parent.mkdir(parents=True)
    (folders / "labelsTr").rename(truth)
    model = folders / "results" / "T__P__2d"
    for fold, cases in enumerate((("case_0", "case_1"), ("case_2",))):
        validation = model / f"fold_{fold}" / "validation"
        validation.mkdir(parents=True)
        for case in cases:
            (folders / "pred" / f"{case}.nii.gz").rename(validation / f"{case}.nii.gz")
    (model / "fold_0" / "validation" / "summary.json").write_text("{}")
    (folders / "dataset.json").rename(model / "dataset.json")
    write_json(model / "plans.json", {"dataset_name": "Dataset901_Tiny"})
    return model


def test_a_result_folder_means_its_validation(model, capsys):
    assert main(["evaluate", str(model)]) == 0
    assert len(read_json(model / "fold_0" / "validation" / "evaluation.json")["metric_per_case"]) == 2
    assert len(read_json(model / "fold_1" / "validation" / "evaluation.json")["metric_per_case"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("the validation of this fold is not finished: 1 cases so far") == 1
    folds = [read_json(model / fold / "validation" / "evaluation.json") for fold in ("fold_0", "fold_1")]
    assert [fold["semicon"]["complete"] for fold in folds] == [True, False]


def test_what_a_running_validation_has_written_is_shown(model, capsys):
    running = model / "fold_1" / "validation"
    (running / "case_1.nii.gz").write_bytes(b"half")
    assert main(["evaluate", str(model / "fold_1")]) == 0
    assert "1 cases so far; not readable yet: case_1" in capsys.readouterr().out
    damage(running / "case_2.nii.gz")
    assert main(["evaluate", str(model / "fold_1")]) == 1
    assert "nothing can be read yet" in sentence(capsys)


def test_a_damaged_file_of_a_finished_validation_is_an_error(model, capsys):
    damage(model / "fold_0" / "validation" / "case_1.nii.gz")
    assert main(["evaluate", str(model / "fold_0")]) == 1
    assert "case_1.nii.gz cannot be read" in sentence(capsys)


def test_references_are_needed_for_other_folders(folders, capsys):
    assert main(["evaluate", str(folders / "pred")]) == 1
    assert "semicon evaluate PRED REF" in sentence(capsys)


def test_one_file_for_several_folds_is_refused(model, capsys):
    assert main(["evaluate", str(model), "--out", str(model / "all.json")]) == 1
    assert "--out names one file" in sentence(capsys)
    assert not list(model.rglob("*evaluation*"))


def test_a_folder_in_the_place_of_a_description_is_one_sentence(folders, capsys):
    assert evaluate(folders, "--dataset", folders) == 1
    assert f"{folders} is a folder: expected a file, such as {folders / 'dataset.json'}" in sentence(capsys)
    assert not list(folders.rglob("*evaluation*"))


def test_json_is_the_file_that_is_named(folders):
    assert evaluate(folders, "--out", folders / "x.json") == 0
    assert json.loads((folders / "x.json").read_text())["semicon"]["tolerance_mm"] is None
    assert not (folders / "pred" / "evaluation.json").exists()
