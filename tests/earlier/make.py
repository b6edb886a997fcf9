"""Writes the files of the present version into ``tests/earlier/v<version>``: ``python -m tests.earlier.make``.

Everything is made by commands, on the tiny dataset: `semicon configure`, a sweep, two interrupts, `semicon evaluate`.
A folder that exists is never written again: its files are a promise to those who have such files.
"""

import lzma
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from nnunet_semicon import __version__
from tests.harness import CONFIGURATIONS, SHORT, SPLIT
from tests.tiny import PLANS, Tiny, build, command, read_json, write_json

FOLDER = Path(__file__).parent
PLACE = "/data/nnunet"  # stands in the stored files for the folder in which they were made
FINAL, LATEST = "checkpoint_final.pth", "checkpoint_latest.pth"
SWEEP = """\
dataset: 901
folds: [0]
seeds: [0]
device: cpu
set: {labeled_per_step: 2}
stages:
  pretrained:
    trainer: nnUNetTrainerSPConPretrain
    configuration: 2d_tiny
    seeds: [0, 1]
    set: {lambda: {patient: 0}}
  finetuned:
    trainer: nnUNetTrainerMeanTeacher
    configuration: 2d_tiny
    from: pretrained
    grid: {ema_decay: [0.9, 0.99]}
  control:
    trainer: nnUNetTrainerSupervisedControl
    configuration: 2d_tiny
  contrast:
    trainer: nnUNetTrainerSPCon
    configuration: 3d_fullres_tiny
    set: {lambda: {position: 0, patient: 0.1}, temperature: 0.2}
  cross:
    trainer: nnUNetTrainerMCSC
    configuration: 2d_tiny
    seeds: [0, 1]
"""
# training -> its trainer and configuration; what is not here, the sweep has not begun
FINISHED = {
    "pretrained_s0_fold0": ("nnUNetTrainerSPConPretrain", "pretrained_s0"),
    "finetuned_ema_decay0.9_s0_fold0": ("nnUNetTrainerMeanTeacher", "finetuned_ema_decay0.9_s0"),
    "control_s0_fold0": ("nnUNetTrainerSupervisedControl", "control_s0"),
}
INTERRUPTED = {
    "pretrained_s1_fold0": ("nnUNetTrainerSPConPretrain", "pretrained_s1"),
    "finetuned_ema_decay0.99_s0_fold0": ("nnUNetTrainerMeanTeacher", "finetuned_ema_decay0.99_s0"),
    "contrast_s0_fold0": ("nnUNetTrainerSPCon", "contrast_s0"),
    "cross_s0_fold0": ("nnUNetTrainerMCSC", "cross_s0"),
}
NOT_BEGUN = ("cross_s1_fold0",)
KEPT = (FINAL, LATEST, "semicon_config.json", "sweep.json", "scalars.jsonl", "validation/*")


def main() -> None:
    target = FOLDER / f"v{__version__}"
    if target.exists():
        sys.exit(f"{target} exists: the files of a version are made once; raise the version first")
    with tempfile.TemporaryDirectory() as folder:
        tiny = build(Path(folder))
        _make(tiny)
        rates = {name: _rates_of_a_resume(tiny, *what) for name, what in INTERRUPTED.items()}
        _store(tiny, target)
    standing = dict.fromkeys(FINISHED, "finished") | dict.fromkeys(INTERRUPTED, "to be resumed")
    standing |= dict.fromkeys(NOT_BEGUN, "to be started")
    write_json(target / "expected.json", {"standing": standing, "learning_rates": rates})


def _make(tiny: Tiny) -> None:
    plans = read_json(tiny.plans_file)
    for parent in CONFIGURATIONS:
        plans["configurations"][parent]["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 8, 8, 8]
    write_json(tiny.plans_file, plans)
    write_json(tiny.preprocessed_dataset / "splits_final.json", [SPLIT])
    settings = [f"{key}={value}" for key, value in SHORT.items() if key != "seed"]
    for parent in CONFIGURATIONS:
        tiny.run("semicon", "configure", "-d", 901, "-c", parent, "--name", f"{parent}_tiny", "--set", *settings)
    sweep = tiny.root / "sweep.yaml"
    sweep.write_text(SWEEP)
    for name, what in FINISHED.items():
        tiny.run("semicon", "sweep", sweep, "--cell", name)
        _shorten(_fold(tiny, *what) / FINAL)  # before another training starts from it
        if (_fold(tiny, *what) / "validation").is_dir():
            tiny.run("semicon", "evaluate", _fold(tiny, *what).parent)
    for name, what in INTERRUPTED.items():
        _interrupt(tiny, sweep, name, _fold(tiny, *what))
        _shorten(_fold(tiny, *what) / LATEST)


def _fold(tiny: Tiny, trainer: str, configuration: str) -> Path:
    return tiny.results / tiny.name / f"{trainer}__{PLANS}__{configuration}" / "fold_0"


def _interrupt(tiny: Tiny, sweep: Path, name: str, fold: Path) -> None:
    """Train until the first of two epochs has left its checkpoint."""
    process = subprocess.Popen([command("semicon"), "sweep", str(sweep), "--cell", name], env=tiny.env)
    while process.poll() is None and not (fold / LATEST).is_file():
        time.sleep(0.005)
    process.terminate()
    process.wait()
    assert torch.load(fold / LATEST, weights_only=False)["current_epoch"] == 1
    assert not (fold / FINAL).exists()


def _shorten(file: Path) -> None:
    """Keep three bits of the mantissa of large float tensors: random numbers, which else no compression makes small."""
    checkpoint = torch.load(file, weights_only=False)
    rest = [checkpoint]
    while rest:
        value = rest.pop()
        if isinstance(value, dict | list | tuple):
            rest.extend(value.values() if isinstance(value, dict) else value)
        elif isinstance(value, torch.Tensor) and value.dtype == torch.float32 and value.numel() > 100:
            value.view(torch.int32).bitwise_and_(-(2**20))  # in place: tensors that share memory go on sharing it
    torch.save(checkpoint, file)


def _rates_of_a_resume(tiny: Tiny, trainer: str, configuration: str) -> list[list[float]]:
    """Return the learning rate of each optimizer's groups at the end of a training that was resumed."""
    copy = tiny.root / "resumed"
    shutil.copytree(tiny.results, copy)
    words = ["901", configuration, "0", "-tr", trainer, "-device", "cpu", "--c"]
    tiny.run("nnUNetv2_train", *words, nnUNet_results=str(copy))
    fold = copy / _fold(tiny, trainer, configuration).relative_to(tiny.results)
    rates = rates_of(torch.load(fold / FINAL, weights_only=False))
    shutil.rmtree(copy)
    return rates


def rates_of(checkpoint: dict) -> list[list[float]]:
    """Return the learning rate of each optimizer's groups."""
    states = [checkpoint["optimizer_state"], *checkpoint["semicon"]["optimizers"]]
    return [[group["lr"] for group in state["param_groups"]] for state in states]


def _store(tiny: Tiny, target: Path) -> None:
    shutil.copytree(
        tiny.preprocessed_dataset, target / "preprocessed", ignore=lambda _, names: [n for n in names if "." not in n]
    )
    (target / "sweep.yaml").write_text(SWEEP)
    for what in (FINISHED | INTERRUPTED).values():
        fold = _fold(tiny, *what)
        for file in (file for pattern in KEPT for file in fold.glob(pattern)):
            stored = target / "results" / file.relative_to(tiny.results / tiny.name)
            stored.parent.mkdir(parents=True, exist_ok=True)
            content = file.read_bytes()
            if file.suffix == ".pth":
                assert str(tiny.root).encode() not in content
                stored.with_name(f"{stored.name}.xz").write_bytes(
                    lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)
                )
            else:
                stored.write_bytes(content.replace(str(tiny.root).encode(), PLACE.encode()))


if __name__ == "__main__":
    main()
