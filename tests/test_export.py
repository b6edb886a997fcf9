"""``semicon export``: what it writes, and the mistakes it answers with one sentence."""

import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.model_sharing.model_export import export_pretrained_model

from nnunet_semicon.cli.main import main
from tests.harness import differing, make_trainer, prepare, run_until

CONTROL, SPCON = "nnUNetTrainerSupervisedControl", "nnUNetTrainerSPCon"
EXPORTED = "Dataset901_Tiny/nnUNetTrainer__nnUNetPlans__2d_short"


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """One finished fold of SP-Con, which has a teacher, and of the control, which has none. Read-only."""
    copy = prepare(tiny.fresh(tmp_path_factory.mktemp("export")))
    with pytest.MonkeyPatch.context() as monkeypatch:
        copy.use(monkeypatch)
        for name in (SPCON, CONTROL):
            run_until(make_trainer(name, "2d_short"), None, monkeypatch)
    return copy


@pytest.fixture
def export(trained, monkeypatch, tmp_path):
    """Runs ``semicon export`` into ``tmp_path/out``; later words override earlier ones."""
    trained.use(monkeypatch)
    defaults = ["-d", "901", "-c", "2d_short", "-tr", SPCON, "-o", str(tmp_path / "out")]
    return lambda *words: main(["export", *defaults, *map(str, words)])


def stored(trained, name: str = SPCON) -> dict:
    fold = trained.results / "Dataset901_Tiny" / f"{name}__nnUNetPlans__2d_short" / "fold_0"
    return torch.load(fold / "checkpoint_final.pth", weights_only=False)


def exported(tmp_path: Path) -> dict:
    return torch.load(tmp_path / "out" / EXPORTED / "fold_0" / "checkpoint_final.pth", weights_only=False)


def test_the_student_is_the_trained_network_under_the_stock_name(trained, export, tmp_path, capsys):
    assert export() == 0
    content = exported(tmp_path)
    assert content["trainer_name"] == "nnUNetTrainer"
    assert "semicon" not in content
    assert differing(content["network_weights"], stored(trained)["network_weights"]) == []
    assert f"nnUNet_results={tmp_path / 'out'} nnUNetv2_predict -d 901 -c 2d_short" in capsys.readouterr().out


def test_the_teacher_is_the_moving_average(trained, export, tmp_path):
    assert export("--network", "teacher") == 0
    weights, checkpoint = exported(tmp_path)["network_weights"], stored(trained)
    assert differing(weights, checkpoint["network_weights"])
    teacher = {key: checkpoint["semicon"]["method"][f"teacher.module.{key}"] for key in weights}
    assert differing(weights, teacher) == []

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(tmp_path / "out" / EXPORTED), (0,), "checkpoint_final.pth")
    assert predictor.network(torch.zeros(1, 1, 32, 32)).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("weights", ["student", "teacher"])
def test_nnunet_zips_what_was_exported(export, tmp_path, monkeypatch, weights):
    assert export("--network", weights) == 0
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "out"))
    export_pretrained_model(901, str(tmp_path / "model.zip"), ("2d_short",), folds=("0",))
    names = set(zipfile.ZipFile(tmp_path / "model.zip").namelist())
    assert {f"{EXPORTED}/plans.json", f"{EXPORTED}/fold_0/checkpoint_final.pth"} <= names


MISTAKES = {
    "another dataset": (["-d", "902"], ["902"]),
    "nothing trained with this trainer": (
        ["-tr", "nnUNetTrainerMeanTeacher"],
        ["nnUNetTrainerMeanTeacher__nnUNetPlans__2d_short does not exist", f"{SPCON}__nnUNetPlans__2d_short"],
    ),
    "no such configuration": (["-c", "2d_shor"], [f"{SPCON}__nnUNetPlans__2d_shor does not exist"]),
    "no such fold": (["-f", "0", "1"], ["fold_1", "expected a finished training of this fold", "found nothing"]),
    "no such checkpoint": (
        ["--checkpoint", "checkpoint_latest.pth"],
        ["checkpoint_latest.pth does not exist", "'checkpoint_best.pth', 'checkpoint_final.pth'"],
    ),
    "a pre-training": (
        ["-tr", "nnUNetTrainerSPConPretrain"],
        ["nnUNetTrainerSPConPretrain pre-trains an encoder and segments nothing", "-pretrained_weights"],
    ),
    "a network of our own": (
        ["-tr", "nnUNetTrainerSwinUNet"],
        ["nnUNetTrainerSwinUNet trains a network that nnU-Net alone cannot build", "install this package there"],
    ),
    "no teacher": (["-tr", CONTROL, "--network", "teacher"], [CONTROL, "has no teacher", "--network student"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_leaves_nothing_behind(export, tmp_path, capsys, mistake):
    words, parts = MISTAKES[mistake]
    assert export(*words) == 1
    assert_sentence(capsys.readouterr().err, *parts)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_existing_target_is_kept(export, tmp_path, capsys):
    assert export() == 0
    before = exported(tmp_path)["network_weights"]
    assert export("--network", "teacher") == 1
    assert_sentence(capsys.readouterr().err, str(tmp_path / "out" / EXPORTED), "exists", "another -o")
    assert differing(before, exported(tmp_path)["network_weights"]) == []


@pytest.mark.parametrize(
    ("file", "damage", "parts"),
    [
        (
            "checkpoint_final.pth",
            lambda path: path.write_bytes(path.read_bytes()[:5000]),
            ["cannot be read", "damaged"],
        ),
        ("progress.png", Path.unlink, ["cannot be copied (No such file or directory)"]),
    ],
)
def test_a_damaged_result_is_one_sentence_and_leaves_nothing_behind(
    trained, export, tmp_path, capsys, monkeypatch, file, damage, parts
):
    copy = tmp_path / "results"
    shutil.copytree(trained.results, copy)
    monkeypatch.setenv("nnUNet_results", str(copy))
    damaged = copy / "Dataset901_Tiny" / f"{SPCON}__nnUNetPlans__2d_short" / "fold_0" / file
    damage(damaged)
    assert export() == 1
    assert_sentence(capsys.readouterr().err, str(damaged), *parts)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_file_is_no_target(export, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert export() == 1
    assert_sentence(capsys.readouterr().err, "is a file", "another -o")
    assert (tmp_path / "out").read_text() == "mine"


def test_results_must_be_named(export, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_results")
    assert export() == 1
    assert_sentence(capsys.readouterr().err, "nnUNet_results is not set")


def assert_sentence(text: str, *parts: str) -> None:
    lines = text.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("semicon export: ")
    for part in parts:
        assert part in lines[0]
