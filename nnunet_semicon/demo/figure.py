"""The figure of ``semicon demo``: a few test slices with the reference and two segmentations."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from nnunet_semicon.demo.dataset import ENDING
from nnunet_semicon.demo.phantom import LABELS

# distinguishable with any color vision (Okabe and Ito)
COLORS = {"RV": "#0072B2", "MYO": "#F0E442", "LV": "#D55E00"}
# where in the labeled part of the stack the slices lie, 0: base, 1: apex
POSITIONS = (0.1, 0.45, 0.6, 0.85)


def draw(
    images: Path, reference: Path, segmentations: Mapping[str, Path], cases: Sequence[str], path: Path, note: str
) -> None:
    """Write the figure: one row per case, columns image, reference and each segmentation.

    Args:
        images: folder with ``<case>_0000.nii.gz``.
        reference: folder with ``<case>.nii.gz``.
        segmentations: title -> folder with ``<case>.nii.gz``.
        cases: as many as ``POSITIONS``.
        path: the PNG file.
        note: printed below.
    """
    titles = ["image", "reference", *segmentations]
    figure = Figure(figsize=(2.2 * len(titles) + 0.6, 2.2 * len(cases) + 0.9), dpi=130, facecolor="white")
    axes = figure.subplots(len(cases), len(titles), squeeze=False)
    for row, case, position in zip(axes, cases, POSITIONS, strict=True):
        image = _read(images / f"{case}_0000{ENDING}")
        labels = _read(reference / f"{case}{ENDING}")
        index = slice_at(labels, position)
        overlays = [None, labels, *(_read(folder / f"{case}{ENDING}") for folder in segmentations.values())]
        for axis, overlay in zip(row, overlays, strict=True):
            _panel(axis, image[index], None if overlay is None else overlay[index])
        row[0].set_ylabel(f"{case.replace('_', ' ')}\nslice {index + 1} of {len(image)}", fontsize=9)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    patches = [Patch(color=color, label=name) for name, color in COLORS.items()]
    width, height = figure.get_size_inches()
    figure.legend(handles=patches, loc="lower center", ncol=3, frameon=False, bbox_to_anchor=(0.5, 0.24 / height))
    figure.text(0.5, 0.12 / height, note, ha="center", fontsize=8, color="dimgray")
    figure.subplots_adjust(
        left=0.55 / width, right=0.99, top=1 - 0.3 / height, bottom=0.62 / height, wspace=0.03, hspace=0.03
    )
    FigureCanvasAgg(figure).print_png(str(path))


def slice_at(labels: NDArray[np.integer], position: float) -> int:
    """Return the slice at ``position`` (0 to 1) of those slices of (Z, Y, X) that have a label."""
    labeled = np.flatnonzero(labels.any(axis=(1, 2)))
    return int(labeled[round(position * (len(labeled) - 1))])


def _panel(axis: Axes, image: NDArray, overlay: NDArray | None) -> None:
    axis.imshow(image, cmap="gray", vmin=0, vmax=np.percentile(image, 99.5), interpolation="nearest")
    if overlay is not None:
        colors = ListedColormap([COLORS[name] for name in COLORS])
        shown = np.ma.masked_equal(overlay, 0)
        axis.imshow(shown, cmap=colors, vmin=LABELS["RV"], vmax=LABELS["LV"], alpha=0.5, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])


def _read(path: Path) -> NDArray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
