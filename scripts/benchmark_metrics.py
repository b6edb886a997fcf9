"""Time and memory of ``semicon evaluate``, and its distances against medpy on the same masks.

Three measurements: the command on the labels of a dataset (its predictions are the true labels with a rough surface),
the command on one large volume, and HD95 with ASD of single masks, computed by both packages in turn in one process.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from provenance import provenance, write_json
from scipy.ndimage import gaussian_filter, map_coordinates

from nnunet_semicon.errors import UserError
from nnunet_semicon.evaluation.surface import boundary, distances, joint_box

CASES = 25
VOLUME = (300, 512, 512)
CLASSES = 5
VOLUME_SPACING = (1.5, 0.8, 0.8)
ROUGHNESS = 1.0  # standard deviation of the displacement of a prediction's voxels

# a process of its own waits for the command, so that the memory is that of the command alone
MEASURED = """
import resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10)
"""


def rough(labels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return labels whose surfaces are displaced by about a voxel."""
    where = [
        axis + gaussian_filter(rng.normal(size=labels.shape), 2) * ROUGHNESS * 10
        for axis in np.meshgrid(*map(np.arange, labels.shape), indexing="ij")
    ]
    return np.asarray(map_coordinates(labels, where, order=0, mode="nearest"))


def large_volume(shift: int) -> NDArray[np.uint8]:
    """Return nested ellipsoids, one per class, moved by ``shift`` voxels."""
    axes = [np.linspace(-1, 1, size, dtype=np.float32) for size in VOLUME]
    z, y, x = (np.roll(axis, shift).reshape([-1 if i == k else 1 for k in range(3)]) for i, axis in enumerate(axes))
    angle = np.arctan2(y, x)
    radius = np.sqrt((z / 0.9) ** 2 + (y / 0.8) ** 2 + (x / 0.9) ** 2) * (1 + 0.03 * np.sin(11 * angle + 9 * z))
    volume = np.zeros(VOLUME, np.uint8)
    for label in range(1, CLASSES + 1):
        volume[radius < 1 - 0.15 * (label - 1)] = label
    return volume


def write(folder: Path, case: str, labels: NDArray[np.uint8], spacing: Sequence[float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(labels)
    image.SetSpacing([float(size) for size in reversed(spacing)])
    SimpleITK.WriteImage(image, str(folder / f"{case}.nii.gz"), True)


def run_command(folder: Path, labels: int) -> dict[str, float]:
    """Return wall time, s, and largest resident set, MiB, of ``semicon evaluate`` on ``pred`` and ``ref``."""
    names = {"background": 0, **{f"class {label}": label for label in range(1, labels + 1)}}
    write_json({"labels": names, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}}, folder / "dataset.json")
    command = [sys.executable, "-m", "nnunet_semicon", "evaluate", str(folder / "pred"), str(folder / "ref")]
    done = subprocess.run([sys.executable, "-c", MEASURED, *command], check=True, capture_output=True, text=True)
    seconds, memory = map(float, done.stdout.split())
    return {"seconds": seconds, "peak_memory_mib": memory}


def ours(prediction: Any, reference: Any, spacing: Sequence[float]) -> list[float]:
    box = joint_box(prediction, reference)
    between = distances(*(boundary(mask[box]) * np.asarray(spacing) for mask in (prediction, reference)))
    return [between.hd95, between.asd]


def medpy(prediction: Any, reference: Any, spacing: Sequence[float]) -> list[float]:
    from medpy.metric.binary import asd, hd95

    return [hd95(prediction, reference, spacing), asd(prediction, reference, spacing)]


def against_medpy(masks: Iterable[tuple[Any, Any, Sequence[float]]]) -> dict[str, float]:
    """Return the median time of both, s, on the same masks in turn, and their largest difference, mm."""
    packages: dict[str, Callable[..., list[float]]] = {"nnunet_semicon": ours, "medpy": medpy}
    seconds: dict[str, list[float]] = {name: [] for name in packages}
    largest = 0.0
    for prediction, reference, spacing in masks:
        values = {}
        for name, metrics in packages.items():
            start = time.perf_counter()
            values[name] = metrics(prediction, reference, spacing)
            seconds[name].append(time.perf_counter() - start)
        largest = max(largest, float(np.abs(np.subtract(*values.values())).max()))
    medians = {name: median(times) for name, times in seconds.items()}
    return {**medians, "ratio": medians["medpy"] / medians["nnunet_semicon"], "largest_difference_mm": largest}


def execute(args: argparse.Namespace) -> None:
    """Measure, print and write the JSON file."""
    files = sorted(args.labels.glob("*.nii.gz"))[:CASES]
    if not files:
        raise UserError(f"{args.labels} has no file ending in .nii.gz: expected a folder labelsTr")
    content: dict[str, Any] = {"dataset": args.labels.resolve().parent.name, "cases": len(files), **provenance("cpu")}
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        masks, highest = [], 0
        for file in files:
            image = SimpleITK.ReadImage(str(file))
            reference = SimpleITK.GetArrayFromImage(image).astype(np.uint8)
            prediction, spacing = rough(reference, rng), image.GetSpacing()[::-1]
            for where, labels in (("pred", prediction), ("ref", reference)):
                write(folder / "cases" / where, file.name.removesuffix(".nii.gz"), labels, spacing)
            highest = max(highest, int(reference.max()))
            masks += [(prediction == label, reference == label, spacing) for label in np.unique(reference)[1:]]
        content["command_on_cases"] = run_command(folder / "cases", highest)
        content["masks"] = against_medpy(masks)
        for where, shift in (("pred", 2), ("ref", 0)):
            write(folder / "volume" / where, "volume", large_volume(shift), VOLUME_SPACING)
        content["command_on_volume"] = run_command(folder / "volume", CLASSES)
    pair = [large_volume(shift) == 1 for shift in (2, 0)]
    content["volume"] = {"shape": VOLUME, "classes": CLASSES, **against_medpy([(*pair, VOLUME_SPACING)])}
    for key in ("command_on_cases", "masks", "command_on_volume", "volume"):
        print(key, content[key])
    if args.out is not None:
        write_json(content, args.out)
        print(f"wrote {args.out}; `python scripts/make_results.py` brings docs/performance.md up to date")


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0, or 1 after one sentence that says what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, required=True, metavar="FOLDER", help="labelsTr of a dataset")
    parser.add_argument("--out", type=Path, metavar="F.json", help="write the measurement there")
    args = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        execute(args)
    except UserError as error:
        print(f"benchmark_metrics: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
