"""Curves: one line of ``scalars.jsonl`` per epoch, nnU-Net's other loggers (wandb), and a second progress figure."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from torch import Tensor

mpl.use("agg")
import matplotlib.pyplot as plt

from nnunet_semicon.files import write_text

FILE = "scalars.jsonl"
FIGURE = "progress_semicon.png"
QUARTILE = re.compile(r"(.+?)_q([123])_(.+)")  # weight_q1_patient: the first quartile of weight_patient


class SummaryOfAnother:
    """What nnU-Net's validation of one more network logs to: nnU-Net's loggers, under keys of its own.

    Args:
        logger: nnU-Net's.
        network: its name, with which its keys begin.
    """

    def __init__(self, logger: Any, network: str) -> None:
        self.logger, self.network = logger, network

    def log_summary(self, key: str, value: Any) -> None:
        """Log a value that exists once per run."""
        self.logger.log_summary(f"{self.network}/{key}", value)


class ScalarLog:
    """Collects the scalars of every step on their device and averages them once per epoch.

    Args:
        folder: the fold folder.
    """

    def __init__(self, folder: str) -> None:
        self.path = Path(folder) / FILE
        self.figure = Path(folder) / FIGURE
        self._steps: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """Remember the 0-dim tensors of one step."""
        for name, value in scalars.items():
            self._steps[name].append(value.detach().float())

    def pop_means(self) -> dict[str, float]:
        """Return name -> mean over the steps since the last call."""
        means = {name: torch.stack([v.cpu() for v in values]).mean().item() for name, values in self._steps.items()}
        self._steps.clear()
        return means

    def truncate(self, epochs: int) -> None:
        """Forget the lines of epochs from ``epochs`` on: a resumed run (0: a new run) writes them again."""
        kept = [row for row in self.rows() if row["epoch"] < epochs]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, epoch: int, means: Mapping[str, float]) -> None:
        """Append one line and redraw the figure."""
        with self.path.open("a") as file:
            file.write(json.dumps({"epoch": epoch, **means}) + "\n")
        self._draw(self.rows())

    def rows(self) -> list[dict[str, Any]]:
        """Return the lines written so far."""
        if not self.path.is_file():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines() if line.strip()]

    def _draw(self, rows: list[dict[str, Any]]) -> None:
        names = [name for name in rows[-1] if name != "epoch" and not QUARTILE.fullmatch(name)]
        columns = min(3, len(names))
        lines = -(-len(names) // columns)
        with plt.style.context("default"):  # nnU-Net's logger changes the global style
            figure, axes = plt.subplots(lines, columns, figsize=(4.5 * columns, 3 * lines), squeeze=False)
            for axis, name in zip(axes.flat, names, strict=False):
                shown = [(row["epoch"], row[name]) for row in rows if name in row]
                axis.plot(*zip(*shown, strict=True), marker=".", color="tab:blue")
                _draw_quartiles(axis, rows, name)
                axis.set_title(name)
                axis.set_xlabel("epoch")
                axis.grid(alpha=0.3)
            for axis in list(axes.flat)[len(names) :]:
                axis.set_axis_off()
            figure.tight_layout()
            figure.savefig(self.figure, dpi=80)
            plt.close(figure)


def _draw_quartiles(axis: Any, rows: list[dict[str, Any]], name: str) -> None:
    """Draw median and the band between the quartiles of ``name`` where they are among the scalars."""
    keys = {}
    for key in rows[-1]:
        match = QUARTILE.fullmatch(key)
        if match and f"{match[1]}_{match[3]}" == name:
            keys[match[2]] = key
    if len(keys) == 3:
        kept = [row for row in rows if keys["2"] in row]
        epochs = [row["epoch"] for row in kept]
        low, median, high = ([row[keys[quarter]] for row in kept] for quarter in "123")
        axis.fill_between(epochs, low, high, color="tab:blue", alpha=0.2)
        axis.plot(epochs, median, color="tab:blue", linestyle=":")
