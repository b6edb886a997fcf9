"""nnU-Net's own commands, as users type them, with nothing set but nnU-Net's own variables."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch

from tests.harness import SHORT, configure, make_trainer, prepare, run_until
from tests.tiny import PLANS, Tiny, command, read_json

TRAINER, CONFIGURATION = "nnUNetTrainerSPCon", "2d_short"
TRAIN = ("nnUNetv2_train", "901", CONFIGURATION, "0", "-tr", TRAINER, "-device", "cpu")
STEPS = 60  # until something is segmented: two empty segmentations are equal without saying anything
# Put on the path of a process and its workers, this makes them a machine without the package.
WITHOUT_PACKAGE = """
import sys


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "nnunet_semicon":
            raise ModuleNotFoundError(f"this machine has no {name}")


sys.meta_path.insert(0, Refuse())
"""


def fold_folder(results: Path, trainer: str = TRAINER) -> Path:
    return results / "Dataset901_Tiny" / f"{trainer}__{PLANS}__{CONFIGURATION}" / "fold_0"


def predict(tiny: Tiny, out: Path, *, trainer: str = TRAINER, processes: int = 0, cold: bool = False, **extra_env: str):
    """Return file name -> segmentation of the four cases of imagesUn."""
    model = ("-d", "901", "-c", CONFIGURATION, "-f", "0", "-tr", trainer)
    how = ("-device", "cpu", "--disable_tta", "-npp", processes, "-nps", processes)
    tiny.run("nnUNetv2_predict", *model, "-i", tiny.raw_dataset / "imagesUn", "-o", out, *how, cold=cold, **extra_env)
    return segmentations(out)


def segmentations(folder: Path) -> dict[str, np.ndarray]:
    """Return file name -> segmentation of the four cases of imagesUn."""
    files = sorted(folder.glob("*.nii.gz"))
    assert len(files) == 4
    return {file.name: SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))) for file in files}


def different(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not np.array_equal(a[name], b[name])]


def another_machine(root: Path) -> dict[str, str]:
    """nnU-Net's variables where neither the dataset nor its plans are."""
    folders = {name: root / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for folder in folders.values():
        folder.mkdir()
    return {name: str(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def trained(tiny, shared) -> Tiny:
    """A finished fold, trained and validated by the stock command with worker processes. Read-only."""

    def train(root: Path) -> None:
        copy = prepare(tiny.fresh(root))
        configure(copy, CONFIGURATION, "2d", **SHORT | {"num_iterations_per_epoch": STEPS // SHORT["num_epochs"]})
        copy.run(*TRAIN, "--npz", cold=True, nnUNet_n_proc_DA="2")

    return Tiny.in_folder(shared("stock_commands", train))


@pytest.fixture(scope="module")
def segmented(trained, shared) -> dict[str, np.ndarray]:
    """What the stock command predicts with that fold."""
    return segmentations(shared("segmented", lambda out: predict(trained, out, processes=1, cold=True)))


@pytest.fixture
def results(trained, tmp_path) -> Path:
    """A copy of the results that a test may change."""
    return Path(shutil.copytree(trained.results, tmp_path / "results"))


def test_train(trained):
    fold = fold_folder(trained.results)
    written = {path.name for path in fold.iterdir()}
    assert written >= {"checkpoint_final.pth", "checkpoint_best.pth", "progress.png", "progress_semicon.png"}
    assert written >= {"scalars.jsonl", "semicon_config.json"}
    assert not [name for name in written if name.endswith((".tmp", "latest.pth"))]
    log = next(fold.glob("training_log*.txt")).read_text()
    assert "labeled 2, unlabeled 6 (imagesUn 4, split 2), validation 2" in log
    validated = {path.name for path in (fold / "validation").glob("*.nii.gz")}
    assert validated == {"patient003_frame01.nii.gz", "patient003_frame02.nii.gz"}


def test_predict(segmented):
    assert all(len(np.unique(segmentation)) > 1 for segmentation in segmented.values()), "nothing is segmented"


def test_validate_again(trained, results):
    summary = fold_folder(results) / "validation" / "summary.json"
    before = read_json(summary)["foreground_mean"]
    shutil.rmtree(summary.parent)
    trained.run(*TRAIN, "--val", nnUNet_results=str(results))
    assert read_json(summary)["foreground_mean"] == before


def test_continue_an_aborted_training(trained, tmp_path, monkeypatch):
    trained.use(monkeypatch)
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    run_until(make_trainer(TRAINER, CONFIGURATION), 1, monkeypatch)
    assert (fold_folder(tmp_path) / "checkpoint_latest.pth").is_file()

    output = trained.run(*TRAIN, "--c", nnUNet_results=str(tmp_path)).stdout
    assert "Epoch 1" in output
    assert "Epoch 0" not in output
    assert {path.name for path in fold_folder(tmp_path).glob("*.pth")} == {
        "checkpoint_best.pth",
        "checkpoint_final.pth",
    }
    assert (fold_folder(tmp_path) / "validation" / "summary.json").is_file()


def test_the_chain_from_the_best_configuration_to_another_machine(trained, segmented, results, tmp_path):
    model = ("-c", CONFIGURATION, "-tr", TRAINER, "-f", "0")
    here = {"nnUNet_results": str(results)}
    output = trained.run(
        "nnUNetv2_find_best_configuration", "901", *model, "-np", 1, "--disable_ensembling", **here
    ).stdout
    assert f"-tr {TRAINER} -c {CONFIGURATION}" in output

    archive = tmp_path / "model.zip"
    trained.run("nnUNetv2_export_model_to_zip", "-d", "901", "-o", archive, *model, **here)
    there = another_machine(tmp_path)
    trained.run("nnUNetv2_install_pretrained_model_from_zip", archive, **there)
    assert different(segmented, predict(trained, tmp_path / "out", **there)) == []


def test_an_exported_model_predicts_on_a_machine_without_the_package(trained, segmented, tmp_path):
    there, bare = another_machine(tmp_path), tmp_path / "bare"
    trained.run("semicon", "export", "-d", "901", "-c", CONFIGURATION, "-tr", TRAINER, "-o", there["nnUNet_results"])
    bare.mkdir()
    (bare / "sitecustomize.py").write_text(WITHOUT_PACKAGE)
    # torch's own switch: it would stop at the entry point of a package that it cannot import
    without = {"PYTHONPATH": str(bare), "NNUNET_SEMICON_AUTOLOAD": "0", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    refused = subprocess.run(
        [sys.executable, "-c", "import nnunet_semicon"], env=trained.env | without, capture_output=True, text=True
    )
    assert "this machine has no nnunet_semicon" in refused.stderr

    predicted = predict(trained, tmp_path / "out", trainer="nnUNetTrainer", cold=True, **there, **without)
    assert different(segmented, predicted) == []


def test_a_mistake_of_the_user_is_one_sentence(tiny, tmp_path):
    copy = prepare(tiny.fresh(tmp_path))
    configure(copy, CONFIGURATION, "2d", **SHORT, temprature=0.1)
    done = copy.run(*TRAIN, check=False, cold=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith("nnunet_semicon: unknown hyper-parameter 'temprature' in the 'semicon' block")
    assert "'temperature'" in sentence
    assert not list(fold_folder(copy.results).glob("*.pth"))


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_loadable_checkpoints(tiny, tmp_path):
    """Every second kill waits for the file that is being written, the others for a random moment."""
    copy = prepare(tiny.fresh(tmp_path))
    # one step per epoch: much of the time is spent on writing checkpoints
    configure(copy, CONFIGURATION, "2d", **SHORT | {"num_epochs": 40, "num_iterations_per_epoch": 1})
    fold = fold_folder(copy.results)
    moments = random.Random(0)
    for kill in range(6):
        for left_behind in fold.glob("*.tmp"):
            left_behind.unlink()
        training = subprocess.Popen(
            [command(TRAIN[0]), *TRAIN[1:], "--c"], env=copy.env, stdout=subprocess.DEVNULL, start_new_session=True
        )
        wait_for_checkpoint(fold, training)
        if kill % 2:
            while not list(fold.glob("*.pth.tmp")):
                assert training.poll() is None, "the training was over before it was killed"
        else:
            time.sleep(moments.uniform(0, 2))
        os.killpg(training.pid, signal.SIGKILL)
        assert training.wait() == -signal.SIGKILL, "the training was over before it was killed"
        for path in fold.glob("*.pth"):
            torch.load(path, weights_only=False)

    copy.run(*TRAIN, "--c")
    final = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    assert final["current_epoch"] == 40
    rows = [json.loads(line) for line in (fold / "scalars.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(40))


def wait_for_checkpoint(fold: Path, training: subprocess.Popen) -> None:
    """Return when the process has written its first checkpoint."""
    started = time.time()
    while not [path for path in fold.glob("*.pth") if path.stat().st_mtime > started]:
        assert training.poll() is None, "the training ended before it was killed"
        time.sleep(0.01)
