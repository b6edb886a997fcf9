"""A tiny nnU-Net dataset, made of real files, small enough to train a step in a fraction of a second.

Scans are anisotropic (8 x 1 x 1 mm, axis 0 coarse), show a "body" (an elliptic cylinder, zero outside of it, so that
nnU-Net crops and ``seg < 0`` exists) with a bright ellipsoid of two labels whose brightness depends on the slice. The
first slice of every second scan is empty, so that an index in the cropped array is not the index in the scan.
Two frames per patient: ``patient001_frame01``, ``patient001_frame02``, ``patient002_frame01``, ...
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK

from tests import warm

FILE_ENDING = ".nii.gz"
SPACING_ZYX = (8.0, 1.0, 1.0)
DATASET = "Dataset901_Tiny"
PLANS = "nnUNetPlans"


def case_name(index: int) -> str:
    """Name of the scan with the given index: two frames per patient."""
    return f"patient{index // 2 + 1:03d}_frame{index % 2 + 1:02d}"


def make_case(index: int, shape=(12, 40, 40), channels=1, seed=0):
    """Return (image (C, Z, Y, X) float32, segmentation (Z, Y, X) uint8 with labels 0, 1, 2)."""
    rng = np.random.default_rng([seed, index])
    # coordinates in [-1, 1] along every axis
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    center = rng.uniform(-0.15, 0.15, 3)
    distance = np.sqrt(((z - center[0]) / 0.8) ** 2 + ((y - center[1]) / 0.5) ** 2 + ((x - center[2]) / 0.6) ** 2)
    seg = np.zeros(shape, dtype=np.uint8)
    seg[distance < 1] = 1
    seg[distance < 0.55] = 2
    body = (y / 0.9) ** 2 + (x / 0.95) ** 2 < 1
    if index % 2:
        body &= z > -1  # the first slice is empty
    seg[~body] = 0

    gain = rng.uniform(0.8, 1.25)
    image = np.empty((channels, *shape), dtype=np.float32)
    for c in range(channels):
        contrast = 60 * (seg == 1) * (1.2 + 0.5 * z) + 110 * (seg == 2) * (1.2 - 0.5 * z)
        texture = 10 * np.sin((2 + c) * np.pi * (x + z))
        image[c] = gain * (100 + 20 * c + contrast + texture + rng.normal(0, 6, shape))
        image[c][~body] = 0
    return image, seg


def write_image(array: np.ndarray, path: Path, spacing_zyx=SPACING_ZYX) -> None:
    """Write an array (Z, Y, X) with its spacing in mm."""
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing([float(s) for s in reversed(spacing_zyx)])
    SimpleITK.WriteImage(image, str(path), True)


def write_case(folder: Path, case: str, image: np.ndarray, spacing_zyx=SPACING_ZYX) -> list[Path]:
    """Write the channels of ``image`` (C, Z, Y, X) as ``<case>_0000.nii.gz``, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{case}_{c:04d}{FILE_ENDING}" for c in range(len(image))]
    for channel, path in zip(image, paths, strict=True):
        write_image(channel, path, spacing_zyx)
    return paths


def write_raw(
    root: Path,
    name: str = DATASET,
    n_labeled: int = 6,
    n_unlabeled: int = 4,
    shape: tuple[int, int, int] = (12, 40, 40),
    channels: int = 1,
    seed: int = 0,
    spacing_zyx: tuple[float, float, float] = SPACING_ZYX,
) -> Path:
    """Write imagesTr, labelsTr, imagesUn (if ``n_unlabeled``) and dataset.json; returns ``root / name``.

    The unlabeled cases follow the labeled ones in the numbering: with 6 + 4 cases they are patient004 and patient005.
    """
    dataset = Path(root) / name
    (dataset / "labelsTr").mkdir(parents=True)
    for index in range(n_labeled + n_unlabeled):
        image, seg = make_case(index, shape, channels, seed)
        labeled = index < n_labeled
        write_case(dataset / ("imagesTr" if labeled else "imagesUn"), case_name(index), image, spacing_zyx)
        if labeled:
            write_image(seg, dataset / "labelsTr" / f"{case_name(index)}{FILE_ENDING}", spacing_zyx)
    write_json(
        dataset / "dataset.json",
        {
            "channel_names": {str(c): f"MRI{c}" for c in range(channels)},
            "labels": {"background": 0, "shell": 1, "core": 2},
            "numTraining": n_labeled,
            "file_ending": FILE_ENDING,
        },
    )
    return dataset


def write_json(path: Path, content) -> None:
    """Write a JSON file as nnU-Net does (keys in their order, indented)."""
    Path(path).write_text(json.dumps(content, indent=4))


def read_json(path: Path):
    """Read a JSON file."""
    return json.loads(Path(path).read_text())


def shrink_plans(plans_file: Path) -> None:
    """Make the planned 2d and 3d_fullres configurations tiny; to be called before preprocessing.

    The 3d patch has 4 slices: clearly fewer than the 12 of a volume.
    """
    plans = read_json(plans_file)
    small = {
        "2d": (4, [32, 32], [[1, 1], [2, 2], [2, 2], [2, 2]], [[3, 3]] * 4),
        "3d_fullres": (2, [4, 32, 32], [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2]], [[1, 3, 3]] + [[3, 3, 3]] * 3),
    }
    for name, (batch_size, patch_size, strides, kernel_sizes) in small.items():
        configuration = plans["configurations"][name]
        configuration["batch_size"] = batch_size
        configuration["patch_size"] = patch_size
        kwargs = configuration["architecture"]["arch_kwargs"]
        per_stage = "n_blocks_per_stage" if "n_blocks_per_stage" in kwargs else "n_conv_per_stage"
        kwargs.update(
            n_stages=4,
            features_per_stage=[8, 16, 16, 16],
            strides=strides,
            kernel_sizes=kernel_sizes,
            n_conv_per_stage_decoder=[1, 1, 1],
        )
        kwargs[per_stage] = [1, 1, 1, 1]
    write_json(plans_file, plans)


def command(name: str) -> str:
    """Path of a console script (``nnUNetv2_train``, ``semicon``) of the environment that runs the tests."""
    return str(Path(sys.executable).parent / name)


@dataclass(frozen=True)
class Tiny:
    """Folders of a planned and preprocessed tiny dataset, and the environment that nnU-Net's commands need."""

    root: Path
    name: str = DATASET
    plans: str = PLANS

    @property
    def raw(self) -> Path:
        """The folder ``nnUNet_raw``."""
        return self.root / "raw"

    @property
    def preprocessed(self) -> Path:
        """The folder ``nnUNet_preprocessed``."""
        return self.root / "preprocessed"

    @property
    def results(self) -> Path:
        """The folder ``nnUNet_results``."""
        return self.root / "results"

    @property
    def raw_dataset(self) -> Path:
        """Raw folder of the dataset."""
        return self.raw / self.name

    @property
    def preprocessed_dataset(self) -> Path:
        """Preprocessed folder of the dataset."""
        return self.preprocessed / self.name

    @property
    def plans_file(self) -> Path:
        """The plans file."""
        return self.preprocessed_dataset / f"{self.plans}.json"

    @property
    def variables(self) -> dict[str, str]:
        """What nnU-Net reads from the environment: the three folders, one thread, one process, loaders without any."""
        return {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
            "nnUNet_n_proc_DA": "0",
            "nnUNet_def_n_proc": "1",  # a second process would import nnU-Net for longer than it works
            "OMP_NUM_THREADS": "1",
            # -device cpu gives torch all cores: its threads, spinning against other processes, take minutes for seconds
            "OMP_WAIT_POLICY": "PASSIVE",
        }

    @property
    def env(self) -> dict[str, str]:
        """A new environment for a subprocess: that of the tests without its nnU-Net variables, plus ours."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("nnUNet_", "NNUNET_SEMICON_"))}
        return inherited | self.variables

    def use(self, monkeypatch) -> None:
        """Let code that runs in the test's own process see this dataset."""
        for key, value in self.variables.items():
            monkeypatch.setenv(key, value)

    def run(self, *words, check: bool = True, cold: bool = False, **extra_env: str) -> subprocess.CompletedProcess:
        """Run a console script (first word) of this environment; its output is captured as text.

        It runs in a process with loaded libraries, see ``tests.warm``; ``cold``: in a new one, as users start it. With
        ``check`` a failure raises an AssertionError that shows the output.
        """
        words = [str(word) for word in words]
        script = command(words[0]) if cold else str(warm.folder() / words[0])
        done = subprocess.run(
            [script, *words[1:]], env=self.env | extra_env, capture_output=True, text=True, timeout=500
        )
        if check:
            assert done.returncode == 0, f"{' '.join(words)} -> {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    @classmethod
    def in_folder(cls, root: Path, name: str = DATASET, plans: str = PLANS) -> "Tiny":
        """The copy that :meth:`fresh` made below ``root``."""
        return cls(Path(root) / "nnunet", name, plans)

    def fresh(self, root: Path) -> "Tiny":
        """A copy below ``root`` that a test may change, with an empty results folder of its own."""
        copy = Tiny.in_folder(root, self.name)
        shutil.copytree(self.raw, copy.raw)
        shutil.copytree(self.preprocessed, copy.preprocessed)
        copy.results.mkdir()
        return copy


def build(root: Path, **raw_options) -> Tiny:
    """Write a raw dataset and plan and preprocess it (2d, 3d_fullres; imagesUn too) with the real commands."""
    tiny = Tiny(Path(root), raw_options.get("name", DATASET))
    for folder in (tiny.raw, tiny.preprocessed, tiny.results):
        folder.mkdir(parents=True)
    dataset = write_raw(tiny.raw, **raw_options)
    number = str(int(tiny.name[7:10]))
    # one process each: a second one would import nnU-Net for longer than it works
    # planning asks torch for as many threads as nnUNet_n_proc_DA says
    tiny.run("nnUNetv2_plan_and_preprocess", "-d", number, "--no_pp", "-npfp", 1, nnUNet_n_proc_DA="1")
    shrink_plans(tiny.plans_file)
    tiny.run("nnUNetv2_preprocess", "-d", number, "-c", "2d", "3d_fullres", "-np", 1, "--no_pbar")
    if (dataset / "imagesUn").is_dir():
        tiny.run("semicon", "preprocess", "-d", number, "-c", "2d", "3d_fullres", "-np", 1)
    return tiny
