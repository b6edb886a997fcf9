"""nnU-Net's own commands, as users type them, with nothing set but nnU-Net's own variables."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from tests.harness import SHORT, configure, prepare
from tests.tiny import PLANS, Tiny, read_json

TRAINER, CONFIGURATION = "nnUNetTrainerSPCon", "2d_short"
TRAIN = ("nnUNetv2_train", "901", CONFIGURATION, "0", "-tr", TRAINER, "-device", "cpu")
MODEL = f"{TRAINER}__{PLANS}__{CONFIGURATION}"
STEPS = 60  # until something is segmented: two empty predictions are equal without saying anything


def predict(tiny: Tiny, out: Path, trainer: str = TRAINER, **extra_env: str):
    words = ["-d", "901", "-c", CONFIGURATION, "-f", "0", "-tr", trainer, "-device", "cpu", "--disable_tta"]
    done = tiny.run("nnUNetv2_predict", "-i", tiny.raw_dataset / "imagesUn", "-o", out, *words, **extra_env)
    return segmentations(out), done


def segmentations(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(folder.glob("*.nii.gz"))
    return {file.name: SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))) for file in files}


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[case], b[case]) for case in a)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> Tiny:
    """A finished fold, trained by the stock command with worker processes. Read-only."""
    copy = prepare(tiny.fresh(tmp_path_factory.mktemp("stock_commands")))
    configure(copy, CONFIGURATION, "2d", **SHORT | {"num_iterations_per_epoch": STEPS // SHORT["num_epochs"]})
    copy.run(*TRAIN, "--npz", nnUNet_n_proc_DA="2")
    return copy


@pytest.fixture(scope="module")
def predicted(trained, tmp_path_factory) -> dict[str, np.ndarray]:
    """Segmentations by the stock command."""
    found, _ = predict(trained, tmp_path_factory.mktemp("predicted"))
    return found


def fold_of(results: Path) -> Path:
    return results / "Dataset901_Tiny" / MODEL / "fold_0"


def test_train(trained):
    fold = fold_of(trained.results)
    written = {path.name for path in fold.iterdir()}
    assert written >= {
        "checkpoint_final.pth",
        "checkpoint_best.pth",
        "progress.png",
        "progress_semicon.png",
        "scalars.jsonl",
        "semicon_config.json",
    }
    assert not [name for name in written if name.endswith((".tmp", "latest.pth"))]
    log = next(fold.glob("training_log*.txt")).read_text()
    assert "labeled 2, unlabeled 6 (imagesUn 4, split 2), validation 2" in log
    cases = {path.name.split(".")[0] for path in (fold / "validation").glob("*.nii.gz")}
    assert cases == {"patient003_frame01", "patient003_frame02"}


def test_predict(predicted):
    assert len(predicted) == 4
    assert all(len(np.unique(array)) > 1 for array in predicted.values()), "nothing is segmented"


def test_validate_again(trained, tmp_path):
    copy = trained.fresh(tmp_path)
    shutil_copy(trained.results, copy.results)
    summary = fold_of(copy.results) / "validation" / "summary.json"
    before = read_json(summary)["foreground_mean"]
    summary.unlink()
    copy.run(*TRAIN, "--val")
    assert read_json(summary)["foreground_mean"] == before


def shutil_copy(source: Path, target: Path) -> None:
    import shutil

    shutil.copytree(source, target, dirs_exist_ok=True)
