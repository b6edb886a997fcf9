"""What the benchmarks of training steps share: a trainer right before its first step, a batch, and a clock."""

import argparse
import contextlib
import json
import random
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from provenance import training_threads

from nnunet_semicon.errors import UserError

STOCK = "nnUNetTrainer"
CONTROL = "nnUNetTrainerSupervisedControl"
VARIANT = "benchmark_step"  # name of the configuration, in memory only


@dataclass(frozen=True)
class Row:
    """A trainer to measure.

    Attributes:
        trainer: name for ``-tr``.
        labeled_per_step: None: as the trainer derives it (the control: every row).
        changes: hyper-parameter, dotted -> value.
    """

    trainer: str
    labeled_per_step: int | None
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What to measure on: plans with all configurations, the one to use, fold and device."""

    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    configuration: str
    fold: int | str
    device: str
    seed: int


def read_task(args: argparse.Namespace) -> Task:
    """Read plans and dataset.json of the preprocessed dataset.

    Raises:
        UserError: a variable is not set, or there are no plans.
    """
    from nnunet_semicon.workspace import dataset_name, preprocessed_folder

    folder = Path(preprocessed_folder()) / dataset_name(args.d)
    plans_file = folder / f"{args.p}.json"
    if not plans_file.is_file():
        raise UserError(f"{plans_file} does not exist: run `nnUNetv2_plan_and_preprocess -d {args.d}` first")
    fold = int(args.fold) if args.fold.isdigit() else args.fold
    plans, dataset_json = (json.loads(path.read_text()) for path in (plans_file, folder / "dataset.json"))
    return Task(plans, dataset_json, args.c, fold, args.device, args.seed)


def variant(task: Task, row: Row | None) -> dict[str, Any]:
    """Return the plans with one more configuration: the given one with the settings of a row."""
    from nnunet_semicon.configuration.config import BLOCK
    from nnunet_semicon.configuration.plans import add_configuration, deep_merge
    from nnunet_semicon.experiments.variants import nested

    plans = add_configuration(task.plans, VARIANT, task.configuration, {})
    block = plans["configurations"][VARIANT].pop(BLOCK)
    block.pop("labeled_per_step", None)
    if row is not None:
        block = deep_merge(block, nested(row.changes))
        if row.labeled_per_step is not None:
            block["labeled_per_step"] = row.labeled_per_step
    plans["configurations"][VARIANT][BLOCK] = block
    return plans


def started(task: Task, row: Row) -> Any:
    """Return a trainer right before its first step, set up as ``nnUNetv2_train`` does."""
    import numpy as np
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_semicon import trainers

    for set_seed in (random.seed, np.random.seed, torch.manual_seed):
        set_seed(task.seed)
    trainer_class = nnUNetTrainer if row.trainer == STOCK else getattr(trainers, row.trainer)
    plans = json.loads(json.dumps({**variant(task, row), "continue_training": False}))
    with contextlib.redirect_stdout(sys.stderr):  # our own output is the table
        trainer = trainer_class(
            plans=plans,
            configuration=VARIANT,
            fold=task.fold,
            dataset_json=task.dataset_json,
            device=torch.device(task.device),
        )
        trainer.on_train_start()
        trainer.current_epoch = trainer.num_epochs // 2
        trainer.on_train_epoch_start()
    return trainer


def prepare_torch(task: Task) -> None:
    """Set what ``nnUNetv2_train`` sets, and keep trainers that share a process from sharing compiled code."""
    import torch

    torch.set_num_threads(training_threads(task.device))
    if task.device == "cuda":
        torch.backends.cudnn.deterministic = False
        torch.backends.cudnn.benchmark = True
        # Alone in its process, each trainer has one compiled network of fixed shape. Together, the second batch size
        # would be compiled for any size, and the ninth network not at all.
        import torch._dynamo

        torch._dynamo.config.automatic_dynamic_shapes = False
        torch._dynamo.config.cache_size_limit = 256


def draw(trainer: Any) -> dict[str, Any]:
    """Return the next batch, in pinned memory where nnU-Net's loaders would pin it."""
    from batchgenerators.dataloading.nondet_multi_threaded_augmenter import pin_memory_of_all_eligible_items_in_dict

    batch = next(trainer.dataloader_train)
    return pin_memory_of_all_eligible_items_in_dict(batch) if trainer.device.type == "cuda" else batch


def seconds_of(action: Callable[[], Any], device: str) -> float:
    """Return how long ``action`` takes, the GPU's part included."""
    import torch

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    wait()
    start = time.perf_counter()
    action()
    wait()
    return time.perf_counter() - start
