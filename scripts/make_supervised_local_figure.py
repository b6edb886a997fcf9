"""Draws the figure of docs/methods/supervised_local.md into docs/figures: which pixels meet, on the demo's phantom."""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from provenance import REPOSITORY

from nnunet_semicon.demo.phantom import make_scan
from nnunet_semicon.losses.local_contrast import pixel_sets

OUT = REPOSITORY / "docs" / "figures" / "local_samplings.png"
SIDE = 48  # pixels of the phantom
COLORS = ListedColormap(["#4d4d4d", "#E69F00", "#0072B2", "#D55E00"])  # background, RV, myocardium, LV
SAMPLINGS = (
    ("exact", 1, "exact: all pixels"),
    ("stride", 4, "stride 4"),
    ("block", 16, "blocks of 16 x 16: one of them"),
)


def heart() -> np.ndarray:
    """Return the labels of the middle slice of a phantom, (SIDE, SIDE)."""
    labels = make_scan(0, "ED").labels
    middle: np.ndarray = labels[len(labels) // 2]
    assert middle.shape == (SIDE, SIDE)
    return middle


def meeting(sampling: str, size: int) -> np.ndarray:
    """Return which pixels are in the set that the middle of the image belongs to, (SIDE, SIDE) bool."""
    number = torch.arange(SIDE * SIDE).view(1, SIDE, SIDE)
    sets, _ = pixel_sets(number[:, None].float(), number, sampling, size)  # type: ignore[arg-type]
    chosen = sets[len(sets) // 2].flatten().long()
    return torch.zeros(SIDE * SIDE, dtype=torch.bool).index_fill(0, chosen, True).view(SIDE, SIDE).numpy()


def draw(out: Path) -> None:
    """Draw the three samplings side by side."""
    figure = Figure(figsize=(8, 2.9), dpi=110, facecolor="white")
    figure.set_layout_engine("constrained")
    labels = heart()
    for axis, (sampling, size, title) in zip(figure.subplots(1, 3), SAMPLINGS, strict=True):
        met = meeting(sampling, size)
        axis.imshow(labels, cmap=COLORS, vmin=0, vmax=3, alpha=np.where(met, 1.0, 0.22), interpolation="nearest")
        axis.set_title(f"{title}\n{met.sum()} pixels of an image meet", fontsize=9)
        axis.set_axis_off()
    FigureCanvasAgg(figure).print_png(out)


def main() -> int:
    """Draw the figure."""
    draw(OUT)
    print(f"written: {OUT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
