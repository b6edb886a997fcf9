"""nnU-Net's presets with residual encoders, which its documentation recommends: every command takes them by ``-p``."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

from nnunet_semicon.configuration.cost import network_cost
from tests.harness import CONFIGURATIONS, NAMES, SHORT, differing, prepare, started, state_of, step
from tests.tiny import DATASET, Tiny, shrink_plans

PLANNER, PRESET = "nnUNetPlannerResEncM", "nnUNetResEncUNetMPlans"


@pytest.fixture(scope="module")
def planned(tiny, shared) -> Tiny:
    """The tiny dataset with plans of nnU-Net's planner for residual encoders beside the default ones. Read-only."""

    def plan(root: Path) -> None:
        copy = replace(tiny.fresh(root), plans=PRESET)
        copy.run("nnUNetv2_plan_experiment", "-d", "901", "-pl", PLANNER, nnUNet_n_proc_DA="1")
        shrink_plans(copy.plans_file)
        prepare(copy)

    return Tiny.in_folder(shared("residual_encoder", plan), plans=PRESET)


@pytest.fixture
def training(planned, monkeypatch, tmp_path) -> Tiny:
    """``planned`` in this process's environment, with results of this test's own."""
    planned.use(monkeypatch)
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    return planned


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parent", CONFIGURATIONS)
def test_every_trainer_trains_the_planned_network(training, name, parent):
    trainer = started(name, f"{parent}_short", plans=PRESET)
    residual = isinstance(trainer.plain_network, ResidualEncoderUNet)
    assert residual == trainer.network_of_plans
    before = state_of(trainer)
    assert np.isfinite(step(trainer)["loss"])
    step(trainer)  # in the first one, a queue may still be empty
    after = state_of(trainer)
    assert any(key.startswith("network.encoder") for key in differing(before, {key: after[key] for key in before}))


@pytest.mark.parametrize("parent", CONFIGURATIONS)
def test_its_feature_maps_are_counted_as_nnunet_does(training, parent):
    """nnU-Net's own estimate also counts the stem, heads and the blocks' skip connections."""
    trainer = started("nnUNetTrainerSupervisedControl", f"{parent}_short", plans=PRESET)
    manager = trainer.configuration_manager
    expected = trainer.plain_network.compute_conv_feature_map_size(manager.patch_size)
    assert network_cost(manager.configuration).values == pytest.approx(expected, rel=0.35)


@pytest.mark.slow
def test_from_a_preset_to_predictions_of_both_networks_and_their_ensemble(planned, tmp_path):
    """Unlabeled scans that were preprocessed for the default plans serve these too: their data is the same."""
    tiny = replace(planned.fresh(tmp_path), plans=PRESET)
    model = ("-d", "901", "-p", PRESET)
    assert "(4 were up to date)" in tiny.run("semicon", "preprocess", *model, "-c", "2d").stdout

    settings = [f"{key}={value}" for key, value in (SHORT | {"num_epochs": 1}).items()]
    tiny.run("semicon", "configure", *model, "-c", "2d", "--name", "2d_preset", "--set", *settings)
    train = ("nnUNetv2_train", "901", "2d_preset", "0", "-p", PRESET, "-device", "cpu")
    output = tiny.run(*train, "-tr", "nnUNetTrainerCPS").stdout
    assert "imagesUn 4" in output

    model = (*model, "-c", "2d_preset", "-f", "0")
    images, predictions = tiny.raw_dataset / "imagesUn", []
    for network in ("student", "second"):
        exported, out = tmp_path / network, tmp_path / f"{network}_out"
        tiny.run("semicon", "export", *model, "-tr", "nnUNetTrainerCPS", "-o", exported, "--network", network)
        assert (exported / DATASET / f"nnUNetTrainer__{PRESET}__2d_preset").is_dir()
        how = ("-device", "cpu", "--disable_tta", "-npp", 0, "-nps", 0, "--save_probabilities")
        tiny.run("nnUNetv2_predict", *model, "-i", images, "-o", out, *how, nnUNet_results=str(exported))
        predictions.append(out)
    ensemble = tmp_path / "ensemble"
    tiny.run("nnUNetv2_ensemble", "-i", *predictions, "-o", ensemble, "-np", 1)
    for file in sorted(images.glob("*.nii.gz")):
        case = file.name.removesuffix("_0000.nii.gz")
        segmentation = SimpleITK.ReadImage(str(ensemble / f"{case}.nii.gz"))
        assert segmentation.GetSize() == SimpleITK.ReadImage(str(file)).GetSize()
        student, second = (np.load(out / f"{case}.npz")["probabilities"] for out in predictions)
        assert not np.array_equal(student, second)
        mean = (student.astype(np.float32) + second) / 2
        certain = np.diff(np.sort(mean, axis=0)[-2:], axis=0)[0] > 1e-3  # stored in half precision
        agree = SimpleITK.GetArrayFromImage(segmentation) == mean.argmax(axis=0)
        assert certain.any()
        assert agree[certain].all()
