"""Drives the real trainers on the tiny dataset, inside the test's own process."""

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.logging.nnunet_logger import MetaLogger

from nnunet_semicon import trainers
from nnunet_semicon.configuration.config import keys_of
from nnunet_semicon.configuration.plans import add_configuration, write_plans
from nnunet_semicon.training import optimization, snapshots
from nnunet_semicon.training.scalars import ScalarLog
from nnunet_semicon.training.semi_trainer import SemiTrainer
from tests import warm
from tests.tiny import PLANS, Tiny, read_json, write_json

NAMES = tuple(trainers.__all__)
WITH_UNLABELED = tuple(n for n in NAMES if getattr(trainers, n).method_class.needs.views)
CONFIGURATIONS = ("2d", "3d_fullres")
# Two processes, and a resumed run, take long. Their errors lie in a mechanism, not in a trainer: the fast tier runs one
# trainer and dimension for each mechanism, the slow tier the others. A test compares this with the trainers' modules.
MECHANISMS = {
    "teacher, queue, contrast by meta-labels, second optimizer": ("nnUNetTrainerSPCon", "2d"),
    "second network, contrast of pixels at several scales": ("nnUNetTrainerMCSC", "3d_fullres"),
    "contrast of windows": ("nnUNetTrainerPLGCL", "2d"),
    "pre-training of the encoder, past the wrapper of DDP": ("nnUNetTrainerSimCLRPretrain", "3d_fullres"),
    "pre-training on labels, contrast of pixels": ("nnUNetTrainerSupervisedLocalPretrain", "2d"),
    "another network than the planned one": ("nnUNetTrainerSwinUNet", "3d_fullres"),
}
LONG_PAIRS = tuple(
    pytest.param(name, parent, marks=() if (name, parent) in MECHANISMS.values() else pytest.mark.slow)
    for name in NAMES
    for parent in CONFIGURATIONS
)
SHORT = {
    "num_epochs": 2,
    "num_iterations_per_epoch": 2,
    "num_val_iterations_per_epoch": 1,
    "save_every": 1,
    "seed": 0,
}
SPLIT = {
    "train": ["patient001_frame01", "patient001_frame02"],
    "val": ["patient003_frame01", "patient003_frame02"],
    "unlabeled": ["patient002_frame01", "patient002_frame02"],
}


class Stopped(Exception):  # noqa: N818
    """Raised where a test wants a training to end."""


def prepare(tiny: Tiny) -> Tiny:
    """Write the split with unlabeled cases and one short configuration per dimension (``2d_short``, ...)."""
    write_json(tiny.preprocessed_dataset / "splits_final.json", [SPLIT])
    for parent in CONFIGURATIONS:
        configure(tiny, f"{parent}_short", parent, **SHORT)
    return tiny


def configure(tiny: Tiny, name: str, parent: str, **values) -> None:
    """Add a configuration to the plans file, as ``semicon configure`` does."""
    write_plans(add_configuration(read_json(tiny.plans_file), name, parent, values), tiny.plans_file)


def make_trainer(
    trainer: str,
    configuration: str,
    fold: int | str = 0,
    continue_training: bool = False,
    device: str = "cpu",
    plans: str = PLANS,
    dataset: str = "901",
) -> SemiTrainer:
    """Return what ``nnUNetv2_train`` builds, not yet initialized. The environment must name the folders."""
    torch.set_num_threads(1)
    how = {"continue_training": continue_training, "device": torch.device(device)}
    return get_trainer_from_args(dataset, configuration, fold, trainer, plans, **how)


def started(trainer: str, configuration: str, **kwargs) -> SemiTrainer:
    """Return a trainer right before its first step."""
    built = make_trainer(trainer, configuration, **kwargs)
    built.on_train_start()
    built.on_train_epoch_start()
    return built


def step(trainer: SemiTrainer, batch: dict | None = None) -> dict:
    """One real training step."""
    return trainer.train_step(next(trainer.dataloader_train) if batch is None else batch)


def encoder_inputs(trainer: SemiTrainer) -> list[torch.Tensor]:
    """Fill the returned list with the rows that enter the student's encoder; their gradients say who teaches it.

    Passes without a gradient, in which the student is its own teacher, are left out.
    """
    seen: list[torch.Tensor] = []

    def keep(_, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        if not torch.is_grad_enabled():
            return inputs
        seen.append(inputs[0].detach().requires_grad_())
        return (seen[-1],)

    trainer.plain_network.encoder.register_forward_pre_hook(keep)
    return seen


def capture_logits(trainer: SemiTrainer) -> list[torch.Tensor]:
    """Fill the returned list with the student's logits at full resolution; they keep their gradients."""
    seen: list[torch.Tensor] = []

    def keep(_, __, logits: list[torch.Tensor]) -> None:
        if torch.is_grad_enabled():
            logits[0].retain_grad()
            seen.append(logits[0])

    trainer.plain_network.register_forward_hook(keep)
    return seen


def mechanisms_of(trainer: SemiTrainer) -> set[type]:
    """The kinds of our modules that its method is made of, and the kind of trainer it is."""
    modules = {type(module) for module in trainer.method.modules() if module is not trainer.method}
    return {type(trainer).__base__, *(kind for kind in modules if kind.__module__.startswith("nnunet_semicon."))}


def without_supervision(trainer: SemiTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace nnU-Net's loss of the labeled rows by zero: only the method's own terms are left."""
    loss = trainer.supervised_loss

    def of_own_terms(logits, target, weight=None):
        if isinstance(target, list):  # the batch's, over the scales; that of a pseudo-label is a single tensor
            return sum(scale.sum() for scale in logits) * 0
        return loss(logits, target, weight)

    monkeypatch.setattr(trainer, "supervised_loss", of_own_terms)


def trusting(name: str, configuration: str, tiny: Tiny) -> str:
    """Return a configuration in which every pseudo-label counts: a network without training is sure of nothing."""
    if "threshold" not in keys_of(getattr(trainers, name).method_class.Config):
        return configuration
    configure(tiny, f"{configuration}_trusting", configuration, threshold=0.0)
    return f"{configuration}_trusting"


def draw_no_strong_views(trainer: SemiTrainer) -> None:
    """Replace strong views by a change that is not random: those of one process are not those of several."""
    trainer.method.strong = torch.cos


def gradients_of(trainer: SemiTrainer) -> dict[str, torch.Tensor]:
    """The gradients that are there, of the network and of the method, by name."""
    return {
        prefix + name: parameter.grad.detach().clone()
        for prefix, module in (("network.", trainer.plain_network), ("method.", trainer.method))
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def capture_gradients(trainer: SemiTrainer, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Fill the returned dict with the gradients of each following step, as they are before clipping."""
    gradients: dict[str, torch.Tensor] = {}
    average: Callable[[Iterable], None] = optimization.average_gradients

    def keep(parameters: Iterable) -> None:
        average(parameters)
        gradients.update(gradients_of(trainer))

    monkeypatch.setattr(optimization, "average_gradients", keep)
    return gradients


def run_until(
    trainer: SemiTrainer, epoch: int | None, monkeypatch: pytest.MonkeyPatch, pictures: bool = False
) -> SemiTrainer:
    """Run the whole training, or stop it when ``epoch`` begins; ``pictures``: draw ours after every epoch."""
    begin = trainer.on_epoch_start

    def maybe_stop() -> None:
        if trainer.current_epoch == epoch:
            raise Stopped
        begin()

    monkeypatch.setattr(trainer, "on_epoch_start", maybe_stop)
    # to draw a figure takes as long as all else here; nnU-Net's is drawn where the stock commands are run
    monkeypatch.setattr(MetaLogger, "plot_progress_png", lambda _, folder: Path(folder, "progress.png").touch())
    if not pictures:
        monkeypatch.setattr(ScalarLog, "_draw", lambda log, _: log.figure.touch())
        for name, (file, _) in snapshots.PICTURES.items():
            monkeypatch.setitem(snapshots.PICTURES, name, (file, lambda _, path: path.touch()))
    with suppress(Stopped):
        trainer.run_training()
    return trainer


def validate(trainer: SemiTrainer) -> None:
    """nnU-Net's validation, with workers forked from a server: each one that is spawned imports nnU-Net for seconds."""
    with warm.forks_for_spawn():
        trainer.perform_actual_validation()


def state_of(trainer: SemiTrainer) -> dict[str, torch.Tensor]:
    """Everything that training changes, by name."""
    state = {f"network.{k}": v for k, v in trainer.plain_network.state_dict().items()}
    state |= {f"method.{k}": v for k, v in trainer.method.state_dict().items()}
    for i, optimizer in enumerate(trainer.optimizers):
        for j, entry in optimizer.state_dict()["state"].items():
            state |= {f"optimizer{i}.{j}.{k}": torch.as_tensor(v) for k, v in entry.items() if v is not None}
    return {name: tensor.clone() for name, tensor in state.items()}


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are not equal bit by bit."""
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def poison_labels(folder: Path, cases: list[str], locations: bool = True) -> None:
    """Replace labels >= 0, and class_locations, of preprocessed cases by nonsense; ``seg < 0`` stays."""
    import blosc2
    from batchgenerators.utilities.file_and_folder_operations import load_pickle, write_pickle

    rng = np.random.default_rng(1)
    for case in cases:
        file = folder / f"{case}_seg.b2nd"
        seg = blosc2.open(str(file), mode="r")[:]
        inside = seg >= 0
        assert inside.any()
        seg[inside] = rng.integers(0, 3, int(inside.sum()))
        file.unlink()
        blosc2.asarray(seg, urlpath=str(file))
        if not locations:
            continue
        properties = load_pickle(str(folder / f"{case}.pkl"))
        properties["class_locations"] = {1: [[0, 10**6, 10**6, 10**6]], 2: "poison"}
        write_pickle(properties, str(folder / f"{case}.pkl"))


def scalars_of(trainer: SemiTrainer) -> list[dict]:
    """The lines of ``scalars.jsonl``."""
    return [json.loads(line) for line in (Path(trainer.output_folder) / "scalars.jsonl").read_text().splitlines()]


def preprocessed_dataset() -> Path:
    """The preprocessed folder that the environment names."""
    return Path(nnUNet_preprocessed) / "Dataset901_Tiny"
