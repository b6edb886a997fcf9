"""The figure of a table of docs/results.md: the Dice of every training."""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from statistics import mean, stdev

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

BANDS = ("#56B4E9", "#E69F00")  # colors of the baselines


def draw(dices: Mapping[str, Mapping[str, Sequence[float]]], baselines: Sequence[str], path: Path) -> None:
    """Draw a panel per column of a table; a file that shows the same numbers stays as it is.

    Args:
        dices: column -> row -> Dice of each seed; all columns have the same rows.
        baselines: rows whose mean and spread are drawn as bands.
        path: of the PNG file, which keeps a hash of its numbers.
    """
    digest = sha256(json.dumps(dices).encode()).hexdigest()
    if path.is_file() and Image.open(path).info.get("Description") == digest:
        return
    names = list(next(iter(dices.values())))
    figure = Figure(figsize=(9, 1.2 + 0.25 * len(names)), dpi=110, facecolor="white")
    figure.set_layout_engine("constrained")
    axes = figure.subplots(1, len(dices), sharey=True, squeeze=False)[0]
    for axis, (title, of_rows) in zip(axes, dices.items(), strict=True):
        for baseline, color in zip(baselines, BANDS, strict=False):
            values = of_rows[baseline]
            if len(values) > 1:
                middle, spread = mean(values), stdev(values)
                axis.axvspan(middle - spread, middle + spread, color=color, alpha=0.3, lw=0, label=baseline)
        for at, values in enumerate(of_rows.values()):
            axis.plot(values, [at] * len(values), "o", color="black", markersize=4, alpha=0.7)
            if values:
                axis.plot(mean(values), at, "|", color="#D55E00", markersize=12, markeredgewidth=2)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("Dice", fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        axis.locator_params(axis="x", nbins=6)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower right", ncols=2, fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path, metadata={"Description": digest})
