r"""Draws what the last map of the decoder looks like in several models: pixels as points, by t-SNE.

    python scripts/make_features_figure.py --images imagesTr --labels labelsTr --cases case_1 case_2 \
        --models scratch=RESULTS/Trainer__Plans__2d/fold_3 global=... --out docs/figures/features.png

Every model shows the same pixels: equally many of every class, background included, drawn from the slices (3d: patches)
with the most foreground. Numbers beside the points are of the features themselves, not of their projection: cosine
distances within and between classes, and the mean silhouette.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from sklearn.manifold import TSNE
from sklearn.metrics import pairwise_distances, silhouette_score

from nnunet_semicon.networks.taps import FeatureTaps, decoder_tap

PER_CLASS = 300  # pixels
SEED = 0
COLORS = ListedColormap(["#9a9a9a", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442"])


@dataclass(frozen=True)
class Separation:
    """How far classes are apart, in cosine distance (0 to 2): within a class, between classes, mean silhouette."""

    within: float
    between: float
    silhouette: float


def separation(vectors: np.ndarray, classes: np.ndarray) -> Separation:
    """Return how far classes are apart; ``vectors`` (N, D), ``classes`` (N,)."""
    distances = pairwise_distances(vectors, metric="cosine")
    same = classes[:, None] == classes[None]
    pairs = ~np.eye(len(classes), dtype=bool)
    score = silhouette_score(vectors, classes, metric="cosine")
    return Separation(float(distances[same & pairs].mean()), float(distances[~same].mean()), float(score))


def pixels(fold_folder: Path, images: Path, labels: Path, cases: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, D) features of the last map of the decoder and (N,) classes, without the ignored ones."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predictor = nnUNetPredictor(device=device, allow_tqdm=False)
    fold = int(fold_folder.name.removeprefix("fold_"))
    predictor.initialize_from_trained_model_folder(str(fold_folder.parent), (fold,), "checkpoint_final.pth")
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    network = predictor.network.to(device).eval()
    tap = decoder_tap()
    taps = FeatureTaps(network, [tap])
    configuration, ending = predictor.configuration_manager, predictor.dataset_json["file_ending"]
    preprocessor = configuration.preprocessor_class(verbose=False)
    vectors, classes = [], []
    for case in cases:
        files = [str(path) for path in sorted(images.glob(f"{case}_[0-9][0-9][0-9][0-9]{ending}"))]
        label = str(labels / f"{case}{ending}")
        image, target, _ = preprocessor.run_case(
            files, label, predictor.plans_manager, configuration, predictor.dataset_json
        )
        image, target = _patch(image, target, configuration.patch_size)
        with torch.no_grad():
            network(torch.from_numpy(image)[None].float().to(device))
        feature = taps.take()[tap][0].float().cpu()
        vectors.append(feature.flatten(1).T.numpy())
        classes.append(target[0].reshape(-1))
    return _balanced(np.concatenate(vectors), np.concatenate(classes))


def _patch(image: np.ndarray, target: np.ndarray, size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The patch around the foreground (2d: in the slice with the most of it), (C, *size) and (1, *size); -1 outside."""
    if len(size) == 2:
        index = int((target[0] > 0).sum(axis=(1, 2)).argmax())
        image, target = image[:, index], target[:, index]
    image = pad_nd_image(image, size)
    target = pad_nd_image(target, size, kwargs={"constant_values": -1})
    middle = np.argwhere(target[0] > 0).mean(axis=0)
    start = [int(np.clip(m - s / 2, 0, n - s)) for m, s, n in zip(middle, size, target.shape[1:], strict=True)]
    window = (slice(None), *(slice(a, a + s) for a, s in zip(start, size, strict=True)))
    return image[window], target[window]


def _balanced(vectors: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equally many pixels of every class, the same ones for every model."""
    random = np.random.default_rng(SEED)
    present = [np.flatnonzero(classes == label) for label in np.unique(classes[classes >= 0])]
    count = min(PER_CLASS, *(len(indices) for indices in present))
    chosen = np.concatenate([random.choice(indices, count, replace=False) for indices in present])
    return vectors[chosen], classes[chosen]


def draw(found: Sequence[tuple[str, np.ndarray, np.ndarray]], out: Path) -> None:
    """Draw one panel per model from (title, vectors, classes)."""
    figure = Figure(figsize=(3.1 * len(found), 3.5), dpi=110, facecolor="white")
    figure.set_layout_engine("constrained")
    for axis, (title, vectors, classes) in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        points = TSNE(metric="cosine", init="random", random_state=SEED).fit_transform(vectors)
        axis.scatter(*points.T, c=classes, cmap=COLORS, vmin=0, vmax=COLORS.N - 1, s=5, linewidths=0)
        apart = separation(vectors, classes)
        numbers = f"within {apart.within:.2f}, between {apart.between:.2f}, silhouette {apart.silhouette:.2f}"
        axis.set_title(f"{title}\n{numbers}", fontsize=8)
        axis.set(xticks=[], yticks=[])
        print(f"{title}: {numbers}")
    FigureCanvasAgg(figure).print_png(str(out))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", required=True, metavar="CASE")
    parser.add_argument("--models", nargs="+", required=True, metavar="TITLE=FOLD_FOLDER")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    found = []
    for title, _, folder in (word.partition("=") for word in args.models):
        found.append((title, *pixels(Path(folder), args.images, args.labels, args.cases)))
    draw(found, args.out)
    print(f"written: {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
