"""What stops a stock command: one sentence that names the file or key and the remedy, before the first epoch."""

import shutil
from pathlib import Path

import pytest
import torch

from nnunet_semicon.data.unlabeled import unlabeled_folder
from tests.harness import SPLIT, configure, make_trainer, prepare, run_until, started
from tests.tiny import Tiny, read_json, write_json

MEAN_TEACHER, SPCON, STOCK = "nnUNetTrainerMeanTeacher", "nnUNetTrainerSPCon", "nnUNetTrainer"
PREPROCESS = "run: semicon preprocess -d 901 -c 2d_short"


@pytest.fixture
def data(tiny, tmp_path, monkeypatch) -> Tiny:
    """A prepared dataset that the test may change, in this process's environment."""
    copy = prepare(tiny.fresh(tmp_path))
    copy.use(monkeypatch)
    return copy


def refused(*parts: str, trainer: str = MEAN_TEACHER, configuration: str = "2d_short", fold: int = 0) -> None:
    """Assert that a training ends before its first step with one sentence that contains all parts."""
    with pytest.raises(SystemExit) as stop:
        started(trainer, configuration, fold=fold)
    assert_sentence(stop.value, *parts)


def assert_sentence(stop: SystemExit, *parts: str) -> None:
    sentence = str(stop.code).strip()
    assert sentence.startswith("nnunet_semicon: ")
    assert "\n" not in sentence
    for part in parts:
        assert part in sentence


def write_split(data: Tiny, **changes: list[str]) -> None:
    write_json(data.preprocessed_dataset / "splits_final.json", [SPLIT | changes])


def unlabeled(data: Tiny) -> Path:
    return Path(unlabeled_folder(str(data.preprocessed_dataset), "nnUNetPlans_2d"))


def test_a_validation_case_listed_as_unlabeled(data):
    write_split(data, unlabeled=["patient002_frame01", "patient003_frame01"])
    refused("fold 0 of ", "splits_final.json", "patient003_frame01", "a validation case")


@pytest.mark.parametrize("key", ["train", "val", "unlabeled"])
def test_an_unknown_case_in_the_split(data, key):
    write_split(data, **{key: ["patient001_frame1"]})
    refused("splits_final.json", f"'{key}'", "patient001_frame1", "did you mean 'patient001_frame01'?")


def test_a_fold_that_the_file_lacks_while_others_list_unlabeled_cases(data):
    refused("has no fold 3", fold=3)
    write_split(data, unlabeled=[])
    assert started(MEAN_TEACHER, "2d_short", fold=3), "without unlabeled lists, nnU-Net's random split is fine"


def test_fewer_labeled_cases_than_nnunet_draws_folds(data):
    (data.preprocessed_dataset / "splits_final.json").unlink()
    for file in (data.preprocessed_dataset / "nnUNetPlans_2d").glob("patient00[23]_frame0*"):
        file.unlink()
    remedy = "`semicon split -d 901 --labeled 1 --folds 2`"
    refused("splits_final.json does not exist", "5 folds from 2 labeled cases", remedy, "fold 'all'")
    assert started(MEAN_TEACHER, "2d_short", fold="all")


@pytest.mark.parametrize("trainer", [MEAN_TEACHER, SPCON])
def test_a_configuration_that_is_not_preprocessed(data, trainer):
    folder = data.preprocessed_dataset / "nnUNetPlans_2d"
    command = "run: nnUNetv2_preprocess -d 901 -plans_name nnUNetPlans -c 2d_short"
    folder.rename(folder.with_name("elsewhere"))
    refused("'2d_short' is not preprocessed", str(folder), command, trainer=trainer)
    folder.mkdir()
    refused("'2d_short' is not preprocessed", command, trainer=trainer)


def test_a_cascade_stage(data):
    configure(data, "2d_cascade", "2d_short")
    plans = read_json(data.plans_file)
    plans["configurations"]["2d_cascade"]["previous_stage"] = "2d_short"
    write_json(data.plans_file, plans)
    refused("'2d_cascade' is a cascade stage", "'2d_short'", configuration="2d_cascade")


def test_an_unknown_hyper_parameter_and_a_bad_value(data):
    configure(data, "2d_wrong", "2d_short", temprature=0.1)
    refused("'temprature'", "'2d_wrong'", "did you mean 'temperature'?", configuration="2d_wrong")
    configure(data, "2d_wrong", "2d_short", ema_decay=1.5)
    refused("'ema_decay'", "1.5", "between 0 and 1", configuration="2d_wrong")


def test_images_un_not_preprocessed(data):
    shutil.rmtree(unlabeled(data))
    refused("of the 4 unlabeled cases", "4 not preprocessed", PREPROCESS)


def test_images_un_partly_preprocessed(data):
    (unlabeled(data) / "patient005_frame01.b2nd").unlink()
    refused("of the 4 unlabeled cases", "1 not preprocessed (patient005_frame01)", PREPROCESS)


@pytest.mark.parametrize("name", [MEAN_TEACHER, SPCON])
def test_scans_that_came_later_do_not_keep_a_finished_run_from_its_validation(data, name):
    finished = started(name, "2d_short")
    finished.save_checkpoint(f"{finished.output_folder}/checkpoint_final.pth")
    images = data.raw_dataset / "imagesUn"
    shutil.copy(images / "patient004_frame01_0000.nii.gz", images / "patient009_frame01_0000.nii.gz")
    again = make_trainer(name, "2d_short", continue_training=True)
    again.load_checkpoint(f"{finished.output_folder}/checkpoint_final.pth")
    with pytest.raises(SystemExit) as stop:
        again.on_train_start()  # --c goes on drawing from them
    assert_sentence(stop.value, "1 not preprocessed (patient009_frame01)", PREPROCESS)


def test_images_un_preprocessed_from_other_images(data):
    images = data.raw_dataset / "imagesUn"
    shutil.copy(images / "patient004_frame01_0000.nii.gz", images / "patient005_frame01_0000.nii.gz")
    refused("1 preprocessed from other images (patient005_frame01)", PREPROCESS)


def test_images_un_preprocessed_with_other_plans(data):
    plans = read_json(data.plans_file)
    plans["configurations"]["2d"]["spacing"] = [2.0, 2.0]
    write_json(data.plans_file, plans)
    refused("4 preprocessed with other plans", PREPROCESS)


def test_the_control_trains_whatever_lies_in_images_un(data):
    shutil.rmtree(unlabeled(data))
    assert started("nnUNetTrainerSupervisedControl", "2d_short")


def test_a_folder_with_nearly_the_right_name(data):
    (data.raw_dataset / "imagesUn").rename(data.raw_dataset / "imagesUnlabeled")
    refused("imagesUnlabeled", "rename imagesUnlabeled to imagesUn")


@pytest.mark.parametrize("name", [MEAN_TEACHER, SPCON])
def test_a_checkpoint_of_the_stock_trainer(data, monkeypatch, name):
    stock = make_trainer(STOCK, "2d_short")
    stock.num_epochs, stock.num_iterations_per_epoch, stock.num_val_iterations_per_epoch = 1, 1, 1
    run_until(stock, None, monkeypatch)
    checkpoint = f"{stock.output_folder}/checkpoint_final.pth"
    assert "semicon" not in torch.load(checkpoint, weights_only=False)
    with pytest.raises(SystemExit) as stop:
        make_trainer(name, "2d_short", continue_training=True).load_checkpoint(checkpoint)
    assert_sentence(stop.value, checkpoint, "'semicon'", "-pretrained_weights")
