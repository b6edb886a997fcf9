"""Draws the figures of docs/methods/sp_con.md into docs/figures.

    python scripts/make_sp_con_figures.py
    python scripts/make_sp_con_figures.py --images imagesTr --labels labelsTr --predictions Control=DIR SP-Con=DIR

The second form also draws predictions beside each other (the paper's Fig. 7); folders hold ``<case>.nii.gz``, as in
``fold_X/validation``.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from provenance import REPOSITORY

from nnunet_semicon.configuration.rules import gamma_range
from nnunet_semicon.losses.schedules import power_schedule
from nnunet_semicon.losses.self_paced import self_paced_weights
from nnunet_semicon.training.schedule import WarmupCosine

FOLDER = REPOSITORY / "docs" / "figures"
PAPER = {"candidates": 59, "temperature": 0.07}  # 30 images in two views
CASES = 4


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
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    schedule = WarmupCosine([optimizer], epochs=1, warmup=0.1)
    rates = []
    for t in done:
        schedule.step(float(t))
        rates.append(optimizer.param_groups[0]["lr"])
    right.plot(done, rates, color="#009E73")
    right.set_ylabel("learning rate, pre-training")
    for axis in (left, right):
        axis.set_xlabel("finished part of the run")
        axis.grid(alpha=0.3)
    FigureCanvasAgg(figure).print_png(str(folder / "schedules.png"))


def predictions(folder: Path, images: Path, labels: Path, predicted: Mapping[str, Path]) -> None:
    """Draw image, reference and predictions of a few cases, each in the slice with the most labeled pixels.

    The cases are chosen by their names alone, evenly among those that all folders have.
    """
    names = set.intersection(*({path.name for path in place.glob("*.nii.gz")} for place in predicted.values()))
    ordered = sorted(names)
    cases = [ordered[i] for i in np.linspace(0, len(ordered) - 1, CASES).round().astype(int)]
    titles = ["image", "reference", *predicted]
    figure = Figure(figsize=(1.9 * len(titles), 1.9 * CASES + 0.3), dpi=110, facecolor="white")
    figure.set_layout_engine("constrained")
    for row, name in zip(figure.subplots(CASES, len(titles), squeeze=False), cases, strict=True):
        reference = _array(labels / name)
        index = int((reference > 0).sum(axis=(1, 2)).argmax())
        image = _array(images / name.replace(".nii.gz", "_0000.nii.gz"))[index]
        shown = [None, reference, *(_array(place / name) for place in predicted.values())]
        for axis, title, segmentation in zip(row, titles, shown, strict=True):
            axis.imshow(image, cmap="gray")
            if segmentation is not None:
                masked = np.ma.masked_equal(segmentation[index], 0)
                axis.imshow(masked, cmap="Set1", vmin=1, vmax=9, alpha=0.55, interpolation="nearest")
            if name == cases[0]:
                axis.set_title(title, fontsize=9)
            axis.set_axis_off()
    FigureCanvasAgg(figure).print_png(str(folder / "hippocampus_predictions.png"))


def _array(path: Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--predictions", nargs="+", default=[], metavar="TITLE=DIR")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    weights(args.out)
    schedules(args.out)
    if args.predictions:
        predicted = {title: Path(place) for title, _, place in (word.partition("=") for word in args.predictions)}
        predictions(args.out, args.images, args.labels, predicted)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
