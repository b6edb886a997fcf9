"""``precision = bfloat16`` on a CPU: networks compute in it, everything that is compared, kept or written does not."""

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_semicon.networks.precision import in_float32
from nnunet_semicon.training.precision import autocast, remark
from tests.harness import NAMES, configure, differing, make_trainer, run_until, started, state_of, step

IN_3D = ("nnUNetTrainerSPCon", "nnUNetTrainerMCSC")


def first_step(name: str, configuration: str):
    """Return trainer, loss, and the dtypes of a step: of layers, of the student's outputs, of the loss's input."""
    trainer = started(name, configuration)
    trainer.current_epoch = 1  # past every warm-up
    seen: dict[str, set] = {"layers": set(), "student": set(), "loss": set()}
    for module in (*trainer.plain_network.modules(), *trainer.method.modules()):
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear):
            module.register_forward_hook(lambda _, args, output: seen["layers"].add(output.dtype))
    student, loss = trainer.student, trainer.supervised_loss

    class Watched:
        def __call__(self, images, perturb=None):
            output = student(images, perturb)
            logits = output.logits if isinstance(output.logits, list | tuple) else [output.logits]
            seen["student"] |= {tensor.dtype for tensor in (*logits, *output.features.values())}
            return output

        def no_grad(self, images):
            logits = student.no_grad(images)
            seen["student"].add(logits.dtype)
            return logits

    def watched_loss(logits, target, weight=None):
        seen["loss"].add(logits[0].dtype)
        return loss(logits, target, weight)

    trainer.student, trainer.supervised_loss = Watched(), watched_loss
    batch = next(trainer.dataloader_train)
    torch.manual_seed(0)
    return trainer, float(step(trainer, batch)["loss"]), seen


def check(training, name: str, parent: str) -> None:
    configure(training, f"{parent}_bfloat16", f"{parent}_short", precision="bfloat16")
    _, expected, seen = first_step(name, f"{parent}_short")
    assert seen["layers"] == {torch.float32}

    trainer, loss, seen = first_step(name, f"{parent}_bfloat16")
    assert seen["layers"] == {torch.bfloat16}, "a network ran outside of autocast"
    assert seen["student"] == {torch.float32}
    assert seen["loss"] <= {torch.float32}
    assert bool(seen["loss"]) is (trainer.resolved.needs.stage == "joint")
    assert np.isfinite(loss)
    assert loss != expected
    assert loss == pytest.approx(expected, rel=0.04)

    assert np.isfinite(step(trainer)["loss"])  # a queue holds something by now
    path = f"{trainer.output_folder}/checkpoint_latest.pth"
    trainer.save_checkpoint(path)
    stored = torch.load(path, weights_only=False)
    tensors = [*stored["network_weights"].values(), *stored["semicon"]["method"].values(), *state_of(trainer).values()]
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float32}
    assert stored["semicon"]["settings"]["precision"] == "bfloat16"


@pytest.mark.parametrize("name", NAMES)
def test_every_trainer_in_bfloat16(training, name):
    check(training, name, "2d")


@pytest.mark.parametrize("name", IN_3D)
def test_bfloat16_in_3d(training, name):
    check(training, name, "3d_fullres")


@pytest.mark.parametrize("name", ["nnUNetTrainerSPCon", "nnUNetTrainerCPS"])
def test_resumed_equals_uninterrupted_in_bfloat16(training, monkeypatch, name):
    configure(training, "resume", "2d_short", num_epochs=3, save_every=2, precision="bfloat16")
    whole = state_of(run_until(make_trainer(name, "resume"), None, monkeypatch))
    run_until(make_trainer(name, "resume"), 2, monkeypatch)
    resumed = make_trainer(name, "resume", continue_training=True)
    resumed.load_checkpoint(f"{resumed.output_folder}/checkpoint_latest.pth")
    halfway = state_of(resumed)
    run_until(resumed, None, monkeypatch)
    assert differing(whole, state_of(resumed)) == []
    assert differing(whole, halfway), "the comparison compares nothing"


def test_a_checkpoint_of_before_goes_on_in_float32_alone(training):
    trainer = started("nnUNetTrainerMeanTeacher", "2d_short")
    path = f"{trainer.output_folder}/checkpoint_latest.pth"
    trainer.save_checkpoint(path)
    stored = torch.load(path, weights_only=False)
    del stored["semicon"]["settings"]["precision"]
    torch.save(stored, path)
    make_trainer("nnUNetTrainerMeanTeacher", "2d_short").load_checkpoint(path)

    configure(training, "other", "2d_short", precision="bfloat16")
    with pytest.raises(SystemExit, match="precision was float32 and is now bfloat16"):
        make_trainer("nnUNetTrainerMeanTeacher", "other").load_checkpoint(path)


def test_validation_stays_float32(training):
    configure(training, "other", "2d_short", precision="bfloat16")
    trainer = started("nnUNetTrainerSupervisedControl", "other")
    dtypes = set()
    trainer.plain_network.register_forward_hook(lambda _, args, output: dtypes.update(o.dtype for o in output))
    trainer.on_validation_epoch_start()
    with torch.no_grad():
        trainer.validation_step(next(trainer.dataloader_val))
    assert dtypes == {torch.float32}


def test_only_a_cpu_is_told_to_use_bfloat16():
    with autocast("cpu", "bfloat16"):
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
    for device, precision in (("cpu", "float32"), ("mps", "bfloat16")):
        with autocast(device, precision):
            assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("device", "precision", "instructions", "sentence"),
    [
        ("cpu", "float32", False, None),
        ("cuda", "float32", False, None),
        ("cpu", "bfloat16", True, None),
        ("cpu", "bfloat16", None, None),
        ("cpu", "bfloat16", False, "no bfloat16 instructions"),
        ("cuda", "bfloat16", True, "changes nothing on cuda"),
        ("mps", "bfloat16", None, "changes nothing on mps"),
    ],
)
def test_a_user_is_told_where_bfloat16_is_in_vain(device, precision, instructions, sentence):
    found = remark(device, precision, instructions)
    assert found is None if sentence is None else sentence in found


def test_outputs_of_networks_leave_bfloat16_and_nothing_else():
    half, low, whole = (torch.ones(2, dtype=dtype) for dtype in (torch.bfloat16, torch.float16, torch.int64))
    found = in_float32({"a": [half, low], "b": (half, whole), "c": None})
    assert [tensor.dtype for tensor in found["a"]] == [torch.float32, torch.float16]
    assert [tensor.dtype for tensor in found["b"]] == [torch.float32, torch.int64]
    assert found["b"][1] is whole
    assert found["c"] is None
