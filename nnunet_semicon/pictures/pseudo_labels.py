"""Pseudo-labels of a few unlabeled images in the course of a run: image, classes, entropy, and the windows drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

FILE = "pseudo_labels.png"
COLORS = ListedColormap(["#9a9a9a", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442"])
SHOWN_PER_CLASS = 3  # windows: more hide each other

Arrays = Mapping[str, NDArray[Any]]


def draw(snapshots: Sequence[tuple[int, Arrays]], path: Path) -> None:
    """Write the figure: two rows per image (pseudo-label with windows, entropy), a column per moment.

    Args:
        snapshots: finished epochs, and arrays: ``image``, ``pseudo_label``, ``entropy`` (N, *S); if patches are
            contrasted also ``windows`` (N, R, dim) first cells, ``window_classes`` (N, R), -1 = none, ``cells``
            (2, dim) cells of an image and of a window. Of a 3d patch the middle slice is shown.
        path: the PNG file.
    """
    n_images = len(snapshots[0][1]["image"])
    with mpl.style.context("default"):  # nnU-Net's logger changes the global style
        size = (2.3 * len(snapshots) + 2.3, 4.6 * n_images + 0.5)
        figure = Figure(figsize=size, dpi=90, facecolor="white")
        figure.set_layout_engine("constrained")
        axes = figure.subplots(2 * n_images, len(snapshots) + 1, squeeze=False)
        highest = max(float(arrays["entropy"].max()) for _, arrays in snapshots)
        for i in range(n_images):
            axes[2 * i, 0].imshow(_slice(snapshots[0][1]["image"][i]), cmap="gray")
            for column, (epoch, arrays) in enumerate(snapshots, start=1):
                above, below = axes[2 * i, column], axes[2 * i + 1, column]
                above.imshow(_slice(arrays["image"][i]), cmap="gray")
                _draw_classes(above, _slice(arrays["pseudo_label"][i]))
                if "windows" in arrays:
                    _draw_windows(above, arrays, i)
                shown = below.imshow(_slice(arrays["entropy"][i]), cmap="magma", vmin=0, vmax=max(highest, 1e-6))
                if i == 0:
                    above.set_title(f"after epoch {epoch}", fontsize=9)
        for axis in axes.flat:
            axis.set_axis_off()
        bar = figure.colorbar(shown, ax=axes, shrink=0.2, aspect=12)
        bar.set_label("entropy", fontsize=8)
        bar.ax.tick_params(labelsize=7)
        note = f"above: teacher's pseudo-labels,\n{SHOWN_PER_CLASS} windows drawn for each class; below: entropy"
        figure.supxlabel(note, fontsize=9)
        FigureCanvasAgg(figure).print_png(str(path))


def _slice(volume: NDArray[Any]) -> NDArray[Any]:
    middle: NDArray[Any] = volume if volume.ndim == 2 else volume[len(volume) // 2]
    return middle


def _draw_classes(axis: Any, classes: NDArray[Any]) -> None:
    axis.imshow(
        np.ma.masked_equal(classes % COLORS.N, 0),
        cmap=COLORS,
        vmin=0,
        vmax=COLORS.N - 1,
        alpha=0.5,
        interpolation="nearest",
    )


def _draw_windows(axis: Any, arrays: Arrays, image: int) -> None:
    shape = np.array(arrays["image"].shape[-2:])
    cells, window = arrays["cells"][:, -2:]
    classes, origins = arrays["window_classes"][image], arrays["windows"][image][:, -2:]
    for label in np.unique(classes[classes >= 0]):
        for top, left in origins[classes == label][:SHOWN_PER_CLASS] * shape / cells:
            height, width = window * shape / cells
            color = COLORS(int(label) % COLORS.N)
            corner = (left - 0.5 + 0.4 * label, top - 0.5 + 0.4 * label)  # boxes of several classes may be the same
            axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=color, linewidth=1))
