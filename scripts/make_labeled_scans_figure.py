r"""Draws the Dice of the control and of Semicon over the number of labeled scans, and that of all labels.

    python scripts/make_labeled_scans_figure.py docs/results/hip2 docs/results/hip2_labels \
        --out docs/figures/labeled_scans.png

The folders hold the JSON files of `semicon sweep`. Only stages that are named in this file are drawn; what is not there
is left out. Of each training, the network that predicts counts.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measured import dice
from sweep_tables import predicts_with

from nnunet_semicon.errors import UserError, listing

LINES = {  # stage -> title, color
    "semicon": ("with unlabeled scans: nnUNetTrainerSemicon", "#D55E00"),
    "control": ("labeled scans alone: nnU-Net", "#0072B2"),
}
ALL_LABELS = "control_all"

Points = dict[str, dict[int, list[float]]]  # stage -> number of labeled scans -> Dice of each seed


def read(folders: Sequence[Path]) -> Points:
    """Return what is measured of the stages that are drawn.

    Raises:
        UserError: nothing is.
    """
    points: Points = {}
    for file in sorted(file for folder in folders for file in folder.glob("*.json")):
        run = json.loads(file.read_text())
        if run.get("stage") in (*LINES, ALL_LABELS) and run["network"] == predicts_with(run):
            points.setdefault(run["stage"], {}).setdefault(run["cases"]["labeled"], []).append(dice(run))
    if not points:
        raise UserError(
            f"{listing(map(str, folders))} holds no JSON file of the stages {', '.join((*LINES, ALL_LABELS))}: "
            "expected the results of docs/sweeps/hip2.yaml"
        )
    return points


def draw(points: Points) -> Figure:
    """Return the figure: a dot per training, a line through the means, a dashed line for all labels."""
    figure = Figure(figsize=(5, 3.4), dpi=200, facecolor="white")  # 1000 pixels, to be shown at 500
    figure.set_layout_engine("constrained")
    axis = figure.subplots()
    for labeled, values in points.get(ALL_LABELS, {}).items():
        axis.axhline(mean(values), linestyle="--", color="black", linewidth=1)
        axis.annotate(
            f"nnU-Net with all {labeled} labels: {mean(values):.2f}",
            (0.02, mean(values)),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=9,
        )
    drawn = {stage: dict(sorted(points[stage].items())) for stage in LINES if stage in points}
    for stage, of_stage in drawn.items():
        _draw_line(axis, of_stage, *LINES[stage])
    ticks = sorted({labeled for of_stage in drawn.values() for labeled in of_stage})
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, map(str, ticks))
    axis.minorticks_off()
    axis.tick_params(labelsize=9)
    axis.margins(x=0.1, y=0.18)
    axis.set_xlabel("labeled scans", fontsize=9)
    axis.set_ylabel("Dice", fontsize=9)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if drawn:
        figure.legend(fontsize=9, frameon=False, loc="outside upper center")
    return figure


def _draw_line(axis: Axes, dices: Mapping[int, Sequence[float]], title: str, color: str) -> None:
    """Draw the trainings of a stage; ``dices``: number of labeled scans, in its order -> Dice of each seed."""
    for labeled, values in dices.items():
        axis.plot([labeled] * len(values), values, "o", color=color, markersize=3, alpha=0.4)
        axis.annotate(
            f"{mean(values):.2f}",
            (labeled, min(values)),
            xytext=(0, -7),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=9,
            color=color,
        )
    means = [mean(values) for values in dices.values()]
    axis.plot(list(dices), means, "o-", color=color, linewidth=2, markersize=5, label=title)


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0, or 1 after one sentence that says what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of JSON files")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        figure = draw(read(args.folders))
    except UserError as error:
        print(f"make_labeled_scans_figure: {error}", file=sys.stderr)
        return 1
    args.out.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(args.out)
    print(f"written: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
