"""Draws the figures of docs/methods/sp_con.md into docs/figures: weights and schedules."""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from provenance import REPOSITORY

from nnunet_semicon.losses.schedules import power_schedule
from nnunet_semicon.losses.self_paced import self_paced_weights
from nnunet_semicon.methods.meta_contrast import gamma_range
from nnunet_semicon.training.schedule import warmup_cosine

FOLDER = REPOSITORY / "docs" / "figures"
PAPER = {"candidates": 59, "temperature": 0.07}  # 30 images in two views


def weights(folder: Path) -> None:
    """Draw w over the pair loss at four moments of the schedule (the paper's Fig. 1)."""
    figure = Figure(figsize=(8, 3), dpi=110, facecolor="white")
    figure.set_layout_engine("constrained")
    losses = torch.linspace(0, 33, 1000)
    for axis, mode in zip(figure.subplots(1, 2, sharey=True), ("linear", "hard"), strict=True):
        ends = gamma_range(PAPER["candidates"], PAPER["temperature"], mode)
        for done, color in zip((0.0, 0.05, 0.3, 1.0), ("#56B4E9", "#0072B2", "#D55E00", "#000000"), strict=True):
            gamma = power_schedule(done, ends["gamma_start"].value, ends["gamma_end"].value)
            w = self_paced_weights(losses, gamma, mode)
            axis.plot(losses, w, color=color, label=f"gamma {gamma:.1f} ({done:.0%} of the run)")
        axis.set_title(mode)
        axis.set_xlabel("pair loss l")
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("weight w")
    FigureCanvasAgg(figure).print_png(str(folder / "self_paced_weights.png"))


def schedules(folder: Path) -> None:
    """Draw gamma and the learning rate of the pre-training over a run (the supplement's Fig. 5)."""
    figure = Figure(figsize=(8, 2.6), dpi=110, facecolor="white")
    figure.set_layout_engine("constrained")
    left, right = figure.subplots(1, 2)
    done = np.linspace(0, 1, 400)
    for mode, color in (("linear", "#0072B2"), ("hard", "#D55E00")):
        ends = gamma_range(PAPER["candidates"], PAPER["temperature"], mode)
        start, end = ends["gamma_start"].value, ends["gamma_end"].value
        left.plot(done, [power_schedule(float(t), start, end) for t in done], color=color, label=mode)
    left.set_ylabel("gamma")
    left.legend()
    right.plot(done, [warmup_cosine(float(t), 2e-4, 0.1) for t in done], color="#009E73")
    right.set_ylabel("learning rate, pre-training")
    for axis in (left, right):
        axis.set_xlabel("finished part of the run")
        axis.grid(alpha=0.3)
    FigureCanvasAgg(figure).print_png(str(folder / "schedules.png"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    weights(args.out)
    schedules(args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
