"""Step time and peak memory of every trainer, relative to the stock ``nnUNetTrainer``.

Step times are interleaved in one process: one step of each trainer, then the next one of each, so that whatever else
the machine does meets all of them alike. The batch is drawn before the clock starts; how long drawing takes (one
process, nnU-Net uses several) is reported beside it. Peak memory is measured in a process per trainer. Steps are those
of the middle of a run, past every warm-up. The dataset must be preprocessed; results go into a temporary folder.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import quantiles
from typing import Any

from performance_page import benchmark_table
from provenance import provenance, training_threads, write_json

from nnunet_semicon.errors import UserError

STOCK = "nnUNetTrainer"
CONTROL = "nnUNetTrainerSupervisedControl"
VARIANT = "benchmark_step"  # name of the configuration, in memory only
MEMORY_STEPS = 3  # the optimizer's buffers exist from the first step on, a queue or teacher is used from the second
# what a choice costs: trainer -> its other settings
OTHERS: dict[str, list[dict[str, Any]]] = {
    "nnUNetTrainerSupervisedLocal": [
        {"sampling": "exact"},
        {"sampling": "stride", "stride": 4},
        {"sampling": "block"},
    ],
    "nnUNetTrainerPLGCL": [{"lambda_patch": 0}, {"patch_source": "image"}],
    "nnUNetTrainerMCSC": [{"scales.1": 0}],
}
LIBRARIES = ["nnunetv2.training.nnUNetTrainer.nnUNetTrainer", "nnunet_semicon.trainers"]


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


def rows_to_measure(task: Task) -> list[Row]:
    """Return stock, the control with all rows, the control with the methods' labeled rows, and every method."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_semicon import trainers
    from nnunet_semicon.configuration.plans import inherited_block
    from nnunet_semicon.configuration.rules import plan_rows

    batch_size = PlansManager(variant(task, None)).get_configuration(VARIANT).batch_size
    share = inherited_block(task.plans["configurations"], task.configuration).get("labeled_per_step")
    of_methods = plan_rows(batch_size, share, 1, None, False).labeled
    controls = [Row(STOCK, None), Row(CONTROL, None), Row(CONTROL, of_methods)]
    methods = [name for name in trainers.__all__ if name != CONTROL]
    return [
        *controls,
        *(Row(name, share, changes) for name in methods for changes in ({}, *OTHERS.get(name, []))),
    ]


def variant(task: Task, row: Row | None) -> dict[str, Any]:
    """Return the plans with one more configuration: the given one with the settings of a row."""
    from nnunet_semicon.cli.key_values import nested
    from nnunet_semicon.configuration.config import BLOCK
    from nnunet_semicon.configuration.plans import add_configuration, deep_merge

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


# --- measuring -----------------------------------------------------------------------------------------------------


def measure_time(task: Task, rows: Sequence[Row], warmup: int, steps: int) -> list[dict[str, Any]]:
    """Return step and drawing times (s: median and quartiles) and the numbers of rows, one entry per row."""
    from torch._dynamo import OptimizedModule

    prepare_torch(task)
    trainers = [started(task, row) for row in rows]
    step_times: list[list[float]] = [[] for _ in rows]
    draw_times: list[list[float]] = [[] for _ in rows]
    for iteration in range(warmup + steps):
        for trainer, step_time, draw_time in zip(trainers, step_times, draw_times, strict=True):
            batches: list[dict[str, Any]] = []
            drawing = seconds_of(lambda t=trainer, b=batches: b.append(draw(t)), task.device)  # type: ignore[misc]
            step = seconds_of(lambda t=trainer, b=batches: t.train_step(b.pop()), task.device)  # type: ignore[misc]
            if iteration >= warmup:
                draw_time.append(drawing)
                step_time.append(step)
        print(f"round {iteration + 1} of {warmup + steps}", file=sys.stderr)
    return [
        {
            "trainer": row.trainer,
            "changes": row.changes,
            "labeled_rows": trainer.batch_size if row.trainer == STOCK else trainer.rows.labeled,
            "student_rows": trainer.batch_size if row.trainer == STOCK else trainer.rows.student_rows,
            "compiled": isinstance(trainer.network, OptimizedModule),
            "step_seconds": spread(step_time),
            "draw_seconds": spread(draw_time),
        }
        for row, trainer, step_time, draw_time in zip(rows, trainers, step_times, draw_times, strict=True)
    ]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median and quartiles."""
    q1, median, q3 = quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3}


def measure_memory(task: Task, row: Row) -> dict[str, Any]:
    """Return the peak memory (MiB) of a few steps in a process of their own.

    Raises:
        UserError: the process died.
    """
    # a server process imports the libraries once and is forked for every trainer: it has used neither threads nor CUDA
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_peak, args=(task, row, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise UserError(f"the process that measures the memory of {row.trainer} died, see its output above") from None
    finally:
        process.join()


def _send_peak(task: Task, row: Row, sender: Connection) -> None:
    import torch

    prepare_torch(task)
    before = _resident_peak_mib()
    trainer = started(task, row)
    for _ in range(MEMORY_STEPS):
        trainer.train_step(draw(trainer))
    if task.device == "cuda":
        sender.send({"peak_memory_mib": torch.cuda.max_memory_allocated() / 2**20})
    else:
        sender.send({"peak_memory_mib": _resident_peak_mib(), "libraries_mib": before})


def _resident_peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


# --- command line --------------------------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name")
    parser.add_argument("-c", required=True, metavar="CONFIGURATION", help="e.g. 2d, or one of `semicon configure`")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: %(default)s)")
    parser.add_argument("--fold", default="0", help="default: %(default)s")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=20, help="measured steps per trainer (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="F.json", help="write the measurement there")
    return parser.parse_args(argv)


def execute(args: argparse.Namespace) -> None:
    """Measure, print the table and write the JSON file."""
    if args.steps < 2 or args.warmup < 0:
        raise UserError(f"--steps {args.steps} --warmup {args.warmup}: expected at least 2 steps and 0 for warming up")
    origin = provenance(args.device)
    task = read_task(args)
    rows = rows_to_measure(task)
    memory = [measure_memory(task, row) for row in rows]
    times = measure_time(task, rows, args.warmup, args.steps)
    content = {
        "dataset": task.plans["dataset_name"],
        "configuration": args.c,
        "fold": task.fold,
        "seed": args.seed,
        "warmup": args.warmup,
        "steps": args.steps,
        **origin,
        "rows": [{**time_of, **memory_of} for time_of, memory_of in zip(times, memory, strict=True)],
    }
    print(benchmark_table(content))
    if args.out is not None:
        write_json(content, args.out)
        print(f"wrote {args.out}; `python scripts/make_results.py` brings docs/performance.md up to date")


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0, or 1 after one sentence that says what is wrong."""
    args = parse(argv)
    with tempfile.TemporaryDirectory() as results:
        # never the user's results; batches are drawn in this process, between the measured steps
        os.environ.update(nnUNet_results=results, nnUNet_n_proc_DA="0")
        try:
            execute(args)
        except UserError as error:
            print(f"benchmark_step: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
