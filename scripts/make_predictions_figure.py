r"""Draws image, reference and the predictions of several models beside each other.

    python scripts/make_predictions_figure.py --images imagesTr --labels labelsTr --out docs/figures/predictions.png \
        --predictions Control=DIR SP-Con=DIR

Folders of predictions hold ``<case>.nii.gz``, as ``nnUNetv2_predict`` and ``fold_X/validation`` do.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

CASES = 4
ENDING = ".nii.gz"


def draw(images: Path, labels: Path, predicted: Mapping[str, Path], out: Path) -> None:
    """Draw a few cases, each in the slice with the most labeled pixels.

    The cases are chosen by their names alone, evenly among those that all folders have.
    """
    names = set.intersection(*({path.name for path in place.glob(f"*{ENDING}")} for place in predicted.values()))
    ordered = sorted(names)
    cases = [ordered[i] for i in np.linspace(0, len(ordered) - 1, CASES).round().astype(int)]
    titles = ["image", "reference", *predicted]
    figure = Figure(figsize=(1.9 * len(titles), 1.9 * CASES + 0.3), dpi=110, facecolor="white")
    figure.set_layout_engine("constrained")
    for row, name in zip(figure.subplots(CASES, len(titles), squeeze=False), cases, strict=True):
        reference = _array(labels / name)
        index = int((reference > 0).sum(axis=(1, 2)).argmax())
        image = _array(images / name.replace(ENDING, f"_0000{ENDING}"))[index]
        shown = [None, reference, *(_array(place / name) for place in predicted.values())]
        for axis, title, segmentation in zip(row, titles, shown, strict=True):
            axis.imshow(image, cmap="gray")
            if segmentation is not None:
                masked = np.ma.masked_equal(segmentation[index], 0)
                axis.imshow(masked, cmap="Set1", vmin=1, vmax=9, alpha=0.55, interpolation="nearest")
            if name == cases[0]:
                axis.set_title(title, fontsize=9)
            axis.set_axis_off()
    FigureCanvasAgg(figure).print_png(str(out))


def _array(path: Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--predictions", nargs="+", required=True, metavar="TITLE=DIR")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    predicted = {title: Path(place) for title, _, place in (word.partition("=") for word in args.predictions)}
    draw(args.images, args.labels, predicted, args.out)
    print(f"written: {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
