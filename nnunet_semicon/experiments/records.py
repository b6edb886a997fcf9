"""What a finished training left in its result folder: settings, cases, duration of the epochs, curves."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from nnunet_semicon.errors import UserError
from nnunet_semicon.files import read_object_or_none
from nnunet_semicon.pictures.self_pacing import labels_of, mean_weights

CONFIG = "semicon_config.json"
SCALARS = "scalars.jsonl"
SNAPSHOTS = Path("snapshots")
STOCK_ITERATIONS = 250  # per epoch, of a trainer that is not ours
EPOCH = re.compile(r": Epoch (\d+) *$.*?: Epoch time: ([\d.]+) s", re.DOTALL | re.MULTILINE)
OUR_CASES = re.compile(r"labeled (\d+), unlabeled (\d+) .*validation (\d+)")
STOCK_CASES = re.compile(r"This split has (\d+) training and (\d+) validation cases")


def training_record(folder: Path) -> dict[str, Any]:
    """Return what is recorded of a training: its length, cases, cost and settings.

    Args:
        folder: the fold folder.

    Raises:
        UserError: nnU-Net's log of it is not there.
    """
    config = read_object_or_none(folder / CONFIG) or {}
    settings = {key: entry["value"] for key, entry in config.get("settings", {}).items()}
    seconds = epoch_seconds(folder)
    if not seconds:
        raise UserError(f"{folder} has no training_log_*.txt of nnU-Net with the duration of its epochs: put it back")
    per_epoch = settings.get("num_iterations_per_epoch", STOCK_ITERATIONS)
    return {
        "labeled_per_step": settings.get("labeled_per_step"),
        "iterations": settings.get("num_epochs", len(seconds)) * per_epoch,
        "cases": case_counts(folder),
        "epoch_seconds": seconds,
        "mean_epoch_seconds": round(mean(seconds), 2),
        # the first epochs start workers and compile: the median is what a step costs
        "seconds_per_iteration": round(median(seconds) / per_epoch, 4),
        "semicon_config": config or None,
    }


def epoch_seconds(folder: Path) -> list[float]:
    """Return the duration of every epoch as nnU-Net logs it: training and validation batches, waiting included.

    A training that was interrupted has several logs; of an epoch that was begun again, the last time counts.
    """
    seconds: dict[int, float] = {}
    for text in _logs(folder):
        seconds.update((int(epoch), float(time)) for epoch, time in EPOCH.findall(text))
    return [seconds[epoch] for epoch in sorted(seconds)]


def case_counts(folder: Path) -> dict[str, int]:
    """Return how many cases the trainer said it uses; the control uses no unlabeled ones.

    Raises:
        UserError: it did not say so.
    """
    for text in reversed(list(_logs(folder))):
        if (ours := OUR_CASES.findall(text)) != []:
            return dict(zip(("labeled", "unlabeled", "validation"), map(int, ours[-1]), strict=True))
        if (stock := STOCK_CASES.findall(text)) != []:
            return {"labeled": int(stock[-1][0]), "unlabeled": 0, "validation": int(stock[-1][1])}
    raise UserError(f"the logs in {folder} do not say how many cases were used: expected training_log_*.txt of nnU-Net")


def curves(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of ``scalars.jsonl``, rounded; of pre-trainings, which have nothing else to show."""
    lines = (folder / SCALARS).read_text().splitlines()
    return [{key: round(value, 5) for key, value in json.loads(line).items()} for line in lines]


def pacing(folder: Path) -> list[dict[str, Any]]:
    """Return the mean self-paced weights of positive and of negative pairs at each snapshot, per meta-label."""
    found = []
    for path in sorted((folder / SNAPSHOTS).glob("self_pacing_epoch*.npz")):
        epoch = int(path.stem.rpartition("epoch")[2])
        with np.load(path) as arrays:
            for label in labels_of(arrays):
                positive, negative = mean_weights(arrays, label)
                entry = {"epoch": epoch, "gamma": float(arrays["gamma"]), "label": label}
                found.append({**entry, "positive": positive, "negative": negative})
    return found


def progress(folder: Path) -> tuple[int, int | None]:
    """Return finished epochs of a training that runs, and how many it will have (None: not known yet)."""
    config = read_object_or_none(folder / CONFIG) or {}
    total = config.get("settings", {}).get("num_epochs", {}).get("value")
    seconds = epoch_seconds(folder)
    return len(seconds), total


def _logs(folder: Path) -> Iterator[str]:
    """Yield the text of nnU-Net's logs, the oldest first."""
    for log in sorted(folder.glob("training_log_*.txt"), key=lambda path: path.stat().st_mtime):
        yield log.read_text(errors="replace")
