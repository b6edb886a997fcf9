"""``semicon demo``: phantoms, data set, table, figure, folder, and the chain of commands."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from matplotlib.image import imread
from scipy.ndimage import binary_dilation

from nnunet_semicon import commands
from nnunet_semicon.cli.main import main
from nnunet_semicon.demo import chain, dataset
from nnunet_semicon.demo.chain import Command, Folder
from nnunet_semicon.demo.figure import POSITIONS, draw, slice_at
from nnunet_semicon.demo.phantom import KINDS, LABELS, PHASES, PIXELS, SPACING_ZYX, Scan, make_scan
from nnunet_semicon.demo.table import read_dice, table_rows
from nnunet_semicon.errors import UserError
from tests.tiny import command, read_json

RV, MYO, LV = (LABELS[name] for name in ("RV", "MYO", "LV"))


# --- phantom -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scans() -> dict[tuple[int, str], Scan]:
    """Both phases of one patient of every kind."""
    return {(patient, phase): make_scan(patient, phase) for patient in range(6, 6 + len(KINDS)) for phase in PHASES}


def test_a_scan_is_the_same_every_time_and_unlike_others(scans):
    again = make_scan(6, "ED")
    np.testing.assert_array_equal(again.image, scans[6, "ED"].image)
    np.testing.assert_array_equal(again.labels, scans[6, "ED"].labels)
    first = [scan.image[2] for scan in scans.values()]
    assert all(abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.95 for a, b in pairwise(first))


def test_geometry(scans):
    for scan in scans.values():
        assert scan.image.shape == scan.labels.shape
        assert 7 <= len(scan.image) <= 11
        assert scan.image.shape[1:] == (PIXELS, PIXELS)
        assert scan.image.dtype == np.int16
        assert scan.image.min() >= 0
        assert scan.labels.dtype == np.uint8
        assert set(np.unique(scan.labels)) == set(LABELS.values())


def test_the_left_ventricle_lies_in_a_ring_of_myocardium(scans):
    for scan in scans.values():
        cavity = scan.labels == LV
        cross = np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], dtype=bool)
        around = binary_dilation(cavity, cross) & ~cavity
        assert np.mean(scan.labels[around] == MYO) > 0.97


def test_the_right_ventricle_is_attached_and_ends_before_the_apex(scans):
    for scan in scans.values():
        touching = binary_dilation(scan.labels == RV, np.ones((1, 3, 3))) & (scan.labels == MYO)
        with_rv = np.flatnonzero((scan.labels == RV).any(axis=(1, 2)))
        assert all(touching[z].any() for z in with_rv)
        assert with_rv.max() < np.flatnonzero((scan.labels == MYO).any(axis=(1, 2))).max()


def test_the_heart_tapers(scans):
    for scan in scans.values():
        area = np.isin(scan.labels, (MYO, LV)).sum(axis=(1, 2))
        area = area[area > 0]
        assert area[-1] < 0.6 * area[: len(area) // 2].min()


def test_contraction(scans):
    for patient in {patient for patient, _ in scans}:
        ed, es = (scans[patient, phase].labels for phase in PHASES)
        assert (es == LV).sum() < 0.9 * (ed == LV).sum()
        assert (es == RV).sum() < (ed == RV).sum()
        share = [np.mean(labels[np.isin(labels, (MYO, LV))] == MYO) for labels in (ed, es)]
        assert share[1] > share[0], "the wall is no thicker"


def test_intensities_overlap_and_differ_between_scans(scans):
    blood = np.array([np.median(scan.image[scan.labels == LV]) for scan in scans.values()])
    assert blood.max() > 1.5 * blood.min(), "every scan has the same gain"
    for scan in scans.values():
        image = scan.image.astype(float)
        assert np.median(image[scan.labels == LV]) > 1.15 * np.median(image[scan.labels == MYO])
        bright = image > np.percentile(image[scan.labels == LV], 10)
        assert bright[scan.labels == 0].sum() > 0.2 * (scan.labels == LV).sum(), "nothing outside looks like blood"


# --- data set ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Folder:
    """A demo's folder with the raw data set (few unlabeled scans) and nothing else. Read-only."""
    folder = chain.claim(tmp_path_factory.mktemp("demo") / "out", force=False)
    dataset.write_dataset(folder.raw, unlabeled=dataset.UNLABELED[:2])
    return folder


def test_roles_do_not_share_patients():
    labeled = {patient for patient, _ in dataset.TRAIN}
    validation = {patient for patient, _ in dataset.VALIDATION}
    unlabeled = {patient for patient, _ in dataset.UNLABELED}
    test = {patient for patient, _ in dataset.TEST}
    assert not test & (labeled | validation | unlabeled)
    assert not validation & (labeled | unlabeled)
    assert not set(dataset.TRAIN) & set(dataset.UNLABELED)
    assert (len(dataset.TRAIN), len(dataset.UNLABELED), len(dataset.TEST)) == (3, 41, 10)


@pytest.mark.usefixtures("forks")
def test_nnunet_accepts_the_dataset(folder, capsys):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    verify_dataset_integrity(str(folder.raw / dataset.NAME), num_processes=1)
    assert "verify_dataset_integrity Done" in capsys.readouterr().out


def test_what_is_written(folder):
    raw = folder.raw / dataset.NAME
    names = {part.name: sorted(path.name for path in part.iterdir()) for part in raw.iterdir() if part.is_dir()}
    assert set(names) == {"imagesTr", "labelsTr", "imagesUn", "imagesTs", "labelsTs"}
    assert names["labelsTr"] == [
        "patient001_ED.nii.gz",
        "patient002_ES.nii.gz",
        "patient003_ED.nii.gz",
        "patient004_ED.nii.gz",
        "patient004_ES.nii.gz",
    ]
    for images, labels in (("imagesTr", "labelsTr"), ("imagesTs", "labelsTs")):
        assert names[images] == [name.replace(".nii.gz", "_0000.nii.gz") for name in names[labels]]
    assert names["imagesUn"] == ["patient001_ES_0000.nii.gz", "patient002_ED_0000.nii.gz"]
    (fold,) = read_json(raw / "splits_final.json")
    assert fold["train"] == ["patient001_ED", "patient002_ES", "patient003_ED"]
    assert fold["val"] == ["patient004_ED", "patient004_ES"]
    image = SimpleITK.ReadImage(str(raw / "imagesTs" / names["imagesTs"][0]))
    assert image.GetSpacing() == SPACING_ZYX[::-1]
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), make_scan(*dataset.TEST[0]).image)


# --- table and figure ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("forks")
def test_dice_is_read_from_nnunets_summary(folder, tmp_path):
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder_simple

    wrong = tmp_path / "predicted"
    wrong.mkdir()
    for path in folder.labels.iterdir():
        image = SimpleITK.ReadImage(str(path))
        labels = SimpleITK.GetArrayFromImage(image)
        labels[labels == RV] = 0
        changed = SimpleITK.GetImageFromArray(labels)
        changed.CopyInformation(image)
        SimpleITK.WriteImage(changed, str(wrong / path.name))
    compute_metrics_on_folder_simple(str(folder.labels), str(wrong), (RV, MYO, LV), num_processes=1)
    assert read_dice(wrong / "summary.json") == {"RV": 0, "MYO": 1, "LV": 1, "mean": pytest.approx(2 / 3)}


def test_table():
    rows = [
        ("supervised", {"RV": 0.5, "MYO": 0.61239, "LV": 1.0, "mean": 0.7}),
        ("x", {"RV": float("nan"), "MYO": 0, "LV": 0, "mean": 0}),
    ]
    assert table_rows(rows) == [
        ["training", "RV", "MYO", "LV", "mean"],
        ["supervised", "0.500", "0.612", "1.000", "0.700"],
        ["x", "missing", "0.000", "0.000", "0.000"],
    ]


def test_slice_at():
    labels = np.zeros((9, 4, 4), dtype=np.uint8)
    labels[2:7, 1, 1] = 1
    assert [slice_at(labels, position) for position in (0, 0.5, 1)] == [2, 4, 6]


def test_figure(folder, tmp_path):
    cases = [dataset.case_name(*scan) for scan in dataset.TEST[: len(POSITIONS)]]
    path = tmp_path / "overlay.png"
    draw(folder.images, folder.labels, {"supervised": folder.labels, "Semicon": folder.labels}, cases, path, "a note")
    pixels = imread(path)[..., :3]
    left, right = np.array_split(pixels[: int(0.85 * len(pixels))], 2, axis=1)
    colored = [np.mean(half.max(axis=-1) - half.min(axis=-1) > 0.2) for half in (left, right)]
    assert colored[1] > 0.08, "two overlays"
    assert 0.3 * colored[1] < colored[0] < 0.7 * colored[1], "a plain image and one overlay"


# --- folder --------------------------------------------------------------------------------------------------------


def refusal(capsys, *words: str) -> str:
    assert main(["demo", "--device", "cpu", *words]) == 1
    sentence = capsys.readouterr().err.strip()
    assert sentence.startswith("semicon demo: ")
    assert "\n" not in sentence
    return sentence


def test_a_folder_with_other_things_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("all of it")
    for words in ((), ("--force",)):
        sentence = refusal(capsys, "--out", str(tmp_path), *words)
        assert f"{tmp_path} is not empty and no earlier demo (thesis.tex)" in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_earlier_demo_is_replaced_only_by_force_and_nothing_else_in_it(tmp_path, capsys):
    earlier = chain.claim(tmp_path, force=False)
    for path in (earlier.table, earlier.logs / "01_plan.log", tmp_path / "mine.txt"):
        path.write_text("text")
    assert "holds an earlier demo: add --force" in refusal(capsys, "--out", str(tmp_path))
    assert earlier.table.is_file()
    chain.claim(tmp_path, force=True)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"demo.json", "mine.txt"}
    assert list(earlier.logs.iterdir()) == []


def test_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "out").write_text("")
    assert "out is a file: give --out" in refusal(capsys, "--out", str(tmp_path / "out"))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "cannot be written (Not a directory)" in refusal(capsys, "--out", str(tmp_path / "file" / "out"))


def test_a_device_that_is_not_there_is_refused(tmp_path, capsys):
    import torch

    missing = "cuda" if torch.backends.mps.is_available() else "mps"  # no machine has both
    assert main(["demo", "--device", missing, "--out", str(tmp_path / "out")]) == 1
    assert f"--device {missing}: torch finds no such device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_intermediate_files_can_be_removed(tmp_path):
    folder = chain.claim(tmp_path, force=False)
    chain.remove_intermediate(folder)
    assert {path.name for path in tmp_path.iterdir()} == {"demo.json", "raw", "predictions", "logs"}


# --- commands ------------------------------------------------------------------------------------------------------


def python(*lines: str, epochs: int = 0) -> Command:
    return Command("test", (Path(sys.executable).name, "-c", "\n".join(lines)), epochs)


def test_every_row_is_trained_predicted_and_evaluated_at_the_same_budget(tmp_path):
    root = tmp_path / "my demo"
    typed = [str(words) for words in chain.commands(Folder(root), "cpu")]
    assert [words.split()[0] for words in typed] == [
        "nnUNetv2_plan_and_preprocess",
        "semicon",
        "semicon",
        *("nnUNetv2_train", "nnUNetv2_predict", "nnUNetv2_evaluate_folder") * 3,
    ]
    assert f"-i '{root}/raw/Dataset500_CinePhantom/imagesTs'" in typed[4], "quoted as it must be typed"
    settings = dict(word.split("=") for word in typed[2].split() if "=" in word)
    assert settings["labeled_per_step"] == settings["unlabeled_per_step"] == settings["batch_size"]
    assert [words for words in typed if words.startswith("nnUNetv2_train")] == [
        "nnUNetv2_train 500 2d_demo 0 -tr nnUNetTrainerSupervisedControl -device cpu",
        "nnUNetv2_train 500 2d_demo 0 -tr nnUNetTrainerSupervisedMix -device cpu",
        "nnUNetv2_train 500 2d_demo 0 -tr nnUNetTrainerSemicon -device cpu",
    ]


def test_a_command_gets_our_variables_and_not_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", "/the/users")
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    shown = python("import json, os", "print(json.dumps(dict(os.environ)))")
    added = chain.variables(Folder(tmp_path), "cpu")
    chain.run(shown, tmp_path / "log", added, lambda epochs: None)
    seen = json.loads((tmp_path / "log").read_text())
    assert {key: value for key, value in seen.items() if key.startswith("nnUNet_")} == added
    assert added["nnUNet_raw"] == str(tmp_path / "raw")
    assert seen["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_epochs_are_reported(tmp_path):
    slow = python(
        "import time", "for i in range(2):", "    print('Epoch time: 1 s', flush=True)", "    time.sleep(0.6)", epochs=2
    )
    seen = []
    chain.run(slow, tmp_path / "log", {}, seen.append)
    assert set(seen) >= {1, 2}
    assert seen == sorted(seen)


def test_a_failing_command_is_one_sentence_with_the_end_of_its_output(tmp_path):
    failing = Command("unlabeled", ("semicon", "preprocess", "-d", "500", "-c", "2d"))
    log = tmp_path / "02_unlabeled.log"
    added = chain.variables(chain.claim(tmp_path / "out", force=False), "cpu")
    with pytest.raises(UserError) as error:
        chain.run(failing, log, added, lambda epochs: None)
    first, *rest = str(error.value).splitlines()
    assert first.startswith("`semicon preprocess -d 500 -c 2d` ended with exit code 1")
    assert f"the whole output is in {log}" in first
    assert rest == [f"    {line}" for line in log.read_text().splitlines() if line.strip()][-commands.LAST_LINES :]
    assert "Traceback" not in log.read_text()


def test_a_command_that_is_not_installed(tmp_path):
    with pytest.raises(UserError, match="`nnUNetv2_nothing` cannot be started"):
        chain.run(Command("x", ("nnUNetv2_nothing",)), tmp_path / "log", {}, lambda epochs: None)


def test_the_workers_of_a_failed_command_are_ended(tmp_path):
    """A worker that would go on forever, with the same output file, and does not listen to SIGTERM."""
    worker = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"
    )
    failing = python(
        "import os, subprocess, sys",
        f"child = subprocess.Popen([sys.executable, '-c', {worker!r}], stdout=subprocess.PIPE)",
        "child.stdout.readline()",
        "print(child.pid, flush=True)",
        "os._exit(3)",
    )
    with pytest.raises(UserError, match="exit code 3"):
        chain.run(failing, tmp_path / "log", {}, lambda epochs: None)
    wait_until_gone(int((tmp_path / "log").read_text()))


def wait_until_gone(pid: int) -> None:
    for _ in range(50):
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
        if not state or state.startswith("Z"):  # a zombie is nobody's: its parent was ended
            return
        time.sleep(0.1)
    raise AssertionError(f"process {pid} is alive")


def test_an_interrupt_ends_everything_with_one_line(tmp_path):
    words = [command("semicon"), "demo", "--out", str(tmp_path / "out"), "--device", "cpu"]
    demo = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    assert demo.stdout is not None
    for line in demo.stdout:
        if line.startswith("$ nnUNetv2_plan_and_preprocess"):
            break
    time.sleep(1)
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    children = [int(pid) for pid, parent in map(str.split, listed.splitlines()) if int(parent) == demo.pid]
    assert children
    demo.send_signal(signal.SIGINT)
    _, error = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert error.strip() == "semicon demo: interrupted"
    for child in children:
        wait_until_gone(child)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_demo(tmp_path):
    words = [command("semicon"), "demo", "--out", "out", "--device", "cpu"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = Folder(tmp_path / "out")
    assert {path.name for path in folder.root.iterdir()} == {
        "demo.json",
        "table.md",
        "overlay.png",
        "raw",
        "predictions",
        "logs",
    }
    printed = [line[2:] for line in done.stdout.splitlines() if line.startswith("$ ")]
    assert printed == [str(words) for words in chain.commands(Folder(Path("out")), "cpu")]
    assert len(list(folder.logs.iterdir())) == len(printed)
    written = [line.strip("| ") for line in folder.table.read_text().splitlines() if line.startswith("|")]
    assert len(written) == 2 + len(chain.ROWS)
    printed = [re.split("  +", line) for line in done.stdout.splitlines()]
    assert all(re.split(r" \| ", line) in printed for line in written[:1] + written[2:])
    assert "proves nothing about patients" in done.stdout
    dice = read_json(folder.record)["dice"]
    for row in chain.ROWS:
        assert len(list(folder.predictions(row).glob("*.nii.gz"))) == len(dataset.TEST)
        assert 0.2 < dice[row.key]["mean"] < 1, "a network that learned nothing, or the labels themselves"
    assert imread(folder.figure).shape[0] > 600
