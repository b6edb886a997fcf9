"""2D natural images with three channels, through nnU-Net's own reader and commands: stained tissue, as PNG."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from skimage import io

from nnunet_semicon.data.preprocess_unlabeled import preprocess_unlabeled
from nnunet_semicon.training.semi_trainer import SemiTrainer
from tests.harness import configure, encoder_inputs, started, state_of, step
from tests.tiny import Tiny, read_json, write_json

NAME = "Dataset902_Tissue"
SHORT = {"num_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "seed": 0}
SIDE = 64
SOURCES = ("feature", "image")


def tissue(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an RGB image (SIDE, SIDE, 3) uint8 of purple glands (label 1) with pale lumina (2) in pink tissue."""
    random = np.random.default_rng(index)
    y, x = np.mgrid[:SIDE, :SIDE]
    labels = np.zeros((SIDE, SIDE), dtype=np.uint8)
    for row, column in random.uniform(12, SIDE - 12, (3, 2)):
        distance = np.hypot(y - row, x - column)
        labels[distance < 11] = 1
        labels[distance < 5] = 2
    colors = np.array([[230, 170, 200], [120, 60, 150], [245, 235, 245]])
    return np.clip(colors[labels] + random.normal(0, 12, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def glands(shared) -> Tiny:
    """A planned and preprocessed dataset of PNG files, four labeled and three unlabeled. Only its results change."""
    return Tiny(shared("glands", make_glands), NAME)


def make_glands(root: Path) -> None:
    """Write the dataset, plan it, preprocess it, and add a configuration for each source of patches."""
    tiny = Tiny(root, NAME)
    for folder in ("imagesTr", "labelsTr", "imagesUn"):
        (tiny.raw_dataset / folder).mkdir(parents=True)
    tiny.preprocessed.mkdir()
    tiny.results.mkdir()
    for index in range(7):
        image, labels = tissue(index)
        is_labeled = index < 4
        folder = tiny.raw_dataset / ("imagesTr" if is_labeled else "imagesUn")
        io.imsave(folder / f"slide_{index}_0000.png", image, check_contrast=False)
        if is_labeled:
            io.imsave(tiny.raw_dataset / "labelsTr" / f"slide_{index}.png", labels, check_contrast=False)
    write_json(
        tiny.raw_dataset / "dataset.json",
        {
            "channel_names": {"0": "R", "1": "G", "2": "B"},
            "labels": {"background": 0, "gland": 1, "lumen": 2},
            "numTraining": 4,
            "file_ending": ".png",
        },
    )
    tiny.run("nnUNetv2_plan_and_preprocess", "-d", "902", "-c", "2d", "-npfp", 1, "-np", 1, nnUNet_n_proc_DA="1")
    plans = read_json(tiny.plans_file)
    assert plans["image_reader_writer"] == "NaturalImage2DIO"
    plans["configurations"]["2d"]["batch_size"] = 4
    kwargs = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    kwargs["features_per_stage"] = [8] * kwargs["n_stages"]
    write_json(tiny.plans_file, plans)
    tiny.run("semicon", "preprocess", "-d", "902", "-c", "2d", "-np", 1)
    train, val = [f"slide_{i}" for i in range(3)], ["slide_3"]
    write_json(tiny.preprocessed_dataset / "splits_final.json", [{"train": train, "val": val}])
    for source in SOURCES:
        configure(tiny, f"2d_{source}", "2d", supervised_warmup=0.0, patch_source=source, **SHORT)


@pytest.fixture
def in_process(glands, monkeypatch, tmp_path) -> Tiny:
    """A copy of the dataset in this process's environment, planned for three rows, as nnU-Net plans GlaS."""
    copy = glands.fresh(tmp_path)
    plans = read_json(copy.plans_file)
    plans["configurations"]["2d"]["batch_size"] = 3
    write_json(copy.plans_file, plans)
    copy.use(monkeypatch)
    return copy


def steps(trainer: str, tiny: Tiny, count: int, **values) -> tuple[SemiTrainer, list[torch.Tensor], list[dict]]:
    """Run steps whose strong views are the constant 5; return the trainer, the rows of its student and the batches."""
    configure(tiny, "2d_steps", "2d", **SHORT, **values)
    started_trainer = started(trainer, "2d_steps", dataset="902")
    assert started_trainer.method.strong.color
    started_trainer.method.strong = lambda images: torch.full_like(images, 5)
    entered, batches = encoder_inputs(started_trainer), []
    for _ in range(count):
        batches.append(next(started_trainer.dataloader_train))
        assert np.isfinite(step(started_trainer, batches[-1])["loss"])
    return started_trainer, [rows.detach() for rows in entered], batches


def check_pasted(mixed: torch.Tensor, labeled: torch.Tensor) -> int:
    """Every row is 5 inside of one mask for all channels, and one labeled image outside; return the mixed rows."""
    count = 0
    for row in mixed:
        unlabeled = (row == 5).all(dim=0)
        assert torch.equal(unlabeled, (row == 5).any(dim=0))
        assert any(torch.equal(row[:, ~unlabeled], image[:, ~unlabeled]) for image in labeled)
        count += int(0 < unlabeled.float().mean() < 1)
    return count


@pytest.mark.parametrize("labeled", [None, 1, 2, 3])
@pytest.mark.parametrize("name", ["nnUNetTrainerSemicon", "nnUNetTrainerSupervisedMix"])
def test_pasting_mixes_all_colors_with_one_mask(in_process, name, labeled):
    rows = {} if labeled is None else {"labeled_per_step": labeled}
    trainer, entered, batches = steps(name, in_process, 3, paste_probability=1.0, **rows)
    assert trainer.resolved.facts.labels == ()
    if name == "nnUNetTrainerSemicon" and labeled in (None, 3):
        assert (trainer.rows.labeled, trainer.rows.images) == (3, 3)
    pasted = 0
    for both, batch in zip(entered, batches, strict=True):
        n = batch["n_labeled"]
        assert labeled in (None, n)
        assert torch.equal(both[:n], batch["image"][:n])
        pasted += check_pasted(both[n:], both[:n])
    assert pasted == 3 * (len(entered[0]) - batches[0]["n_labeled"])


@pytest.mark.parametrize("unlabeled", [1, 3])
@pytest.mark.parametrize("labeled", [1, 3])
def test_few_rows_can_exchange_boxes(in_process, labeled, unlabeled):
    values = {"labeled_per_step": labeled, "unlabeled_per_step": unlabeled, "threshold": 0.0}
    trainer, entered, _ = steps(
        "nnUNetTrainerSemicon", in_process, 2, self_training="match", cutmix_probability=1.0, **values
    )
    assert [len(rows) for rows in entered] == [labeled + unlabeled] * 2
    assert all(torch.isfinite(value).all() for value in state_of(trainer).values())


@pytest.mark.parametrize("source", ["feature", pytest.param("image", marks=pytest.mark.slow)])
def test_stock_commands_train_and_predict(glands, tmp_path, source):
    name = f"2d_{source}"
    trained = glands.run("nnUNetv2_train", "902", name, "0", "-tr", "nnUNetTrainerPLGCL", "-device", "cpu")
    assert "labeled 3, unlabeled 3 (imagesUn 3, split 0), validation 1" in trained.stdout
    fold = glands.results / NAME / f"nnUNetTrainerPLGCL__nnUNetPlans__{name}" / "fold_0"
    assert (fold / "pseudo_labels.png").stat().st_size > 10_000
    words = ["-d", "902", "-c", name, "-f", "0", "-tr", "nnUNetTrainerPLGCL", "-device", "cpu", "-npp", 0, "-nps", 0]
    glands.run("nnUNetv2_predict", "-i", glands.raw_dataset / "imagesUn", "-o", tmp_path, *words)
    predicted: list[Path] = sorted(tmp_path.glob("*.png"))
    assert [path.name for path in predicted] == [f"slide_{i}.png" for i in (4, 5, 6)]
    assert io.imread(predicted[0]).shape == (SIDE, SIDE)


@pytest.mark.usefixtures("forks")
def test_images_with_other_channels_are_named(glands, tmp_path):
    copy = Tiny(tmp_path / "copy", NAME)
    shutil.copytree(glands.raw, copy.raw)
    shutil.copytree(glands.preprocessed, copy.preprocessed)
    image = tissue(9)[0]
    shapes = {"gray": image[..., 0], "rgba": np.concatenate([image, image[..., :1]], axis=2)}
    for name, pixels in shapes.items():
        io.imsave(copy.raw_dataset / "imagesUn" / f"{name}_0000.png", pixels, check_contrast=False)
    result = preprocess_unlabeled(
        str(copy.raw_dataset),
        str(copy.preprocessed_dataset),
        PlansManager(str(copy.plans_file)),
        "2d",
        read_json(copy.raw_dataset / "dataset.json"),
        n_processes=1,
    )
    assert set(result.failures) == {"gray", "rgba"}
    for name, found in (("gray", "1 channel,"), ("rgba", "4 channels,")):
        sentence = f"{name}_0000.png holds {found} but with dataset.json it should hold 3: convert it, or remove it"
        assert sentence in result.failures[name]
