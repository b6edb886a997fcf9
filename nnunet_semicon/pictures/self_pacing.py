"""The self-paced weights of all pairs of images of two scans, at a few moments of a run (SP-Con supplement, Fig. 6)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

FILE = "self_pacing.png"

Arrays = Mapping[str, NDArray[Any]]


def labels_of(arrays: Arrays) -> list[str]:
    """Return the meta-labels that a snapshot has weights of."""
    return [name.removeprefix("weight_") for name in arrays if name.startswith("weight_")]


def mean_weights(arrays: Arrays, label: str) -> tuple[float, float]:
    """Return the mean weight of the positive and of the negative pairs of a label; NaN without such a pair."""
    weights, positive = arrays[f"weight_{label}"], arrays[f"positive_{label}"].astype(bool)
    negative = ~positive & ~np.eye(len(weights), dtype=bool)
    return (
        float(weights[positive].mean()) if positive.any() else float("nan"),
        float(weights[negative].mean()) if negative.any() else float("nan"),
    )


def draw(snapshots: Sequence[tuple[int, Arrays]], path: Path) -> None:
    """Write the figure: a row per meta-label, a column per moment.

    Args:
        snapshots: finished epochs, and arrays: ``weight_<label>`` (N, N) in [0, 1], ``positive_<label>`` (N, N) bool,
            ``scan`` (N,) number of the scan of each image, ``gamma`` ().
        path: the PNG file.
    """
    labels = labels_of(snapshots[0][1])
    with mpl.style.context("default"):  # nnU-Net's logger changes the global style
        figure = Figure(figsize=(3.1 * len(snapshots) + 0.3, 3.1 * len(labels) + 0.4), dpi=100, facecolor="white")
        figure.set_layout_engine("constrained")
        axes = figure.subplots(len(labels), len(snapshots), squeeze=False)
        for row, label in zip(axes, labels, strict=True):
            for axis, (epoch, arrays) in zip(row, snapshots, strict=True):
                _draw_matrix(axis, arrays, label)
                gamma = f", gamma {float(arrays['gamma']):.1f}" if label == labels[0] else ""
                positive, negative = mean_weights(arrays, label)
                means = f"mean w: positive {positive:.3f}, negative {negative:.3f}"
                axis.set_title(f"after epoch {epoch}{gamma}\n{means}", fontsize=8)
                figure.colorbar(axis.images[0], ax=axis, shrink=0.75).ax.tick_params(labelsize=7)
            row[0].set_ylabel(label)
        figure.supxlabel(
            "weight w of all pairs of images of two scans, by slice; red: where the label changes", fontsize=9
        )
        FigureCanvasAgg(figure).print_png(str(path))


def _draw_matrix(axis: Any, arrays: Arrays, label: str) -> None:
    """Draw the weights of one label, each matrix in its own range: late in a run, all weights are large."""
    scan = arrays["scan"]
    weights = np.ma.masked_where(np.eye(len(scan), dtype=bool), arrays[f"weight_{label}"])
    axis.imshow(weights, cmap="viridis", interpolation="nearest")
    border = int((scan == scan[0]).sum()) - 0.5
    axis.axhline(border, color="white", linewidth=1)
    axis.axvline(border, color="white", linewidth=1)
    _outline(axis, arrays[f"positive_{label}"].astype(bool))
    axis.set_xticks([])
    axis.set_yticks([])


def _outline(axis: Any, mask: NDArray[np.bool_]) -> None:
    """Draw the borders between positive and negative pairs."""
    same = mask | np.eye(len(mask), dtype=bool)
    across, down = np.nonzero(same[:, 1:] != same[:, :-1]), np.nonzero(same[1:] != same[:-1])
    lines = [[(j + 0.5, i - 0.5), (j + 0.5, i + 0.5)] for i, j in zip(*across, strict=True)]
    lines += [[(j - 0.5, i + 0.5), (j + 0.5, i + 0.5)] for i, j in zip(*down, strict=True)]
    axis.add_collection(LineCollection(lines, colors="tab:red", linewidths=1), autolim=False)
