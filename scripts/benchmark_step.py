"""Step time and peak memory of every trainer, relative to the stock ``nnUNetTrainer``.

Step times are interleaved in one process: one step of each trainer, then the next one of each, so that whatever else
the machine does meets all of them alike. The batch is drawn before the clock starts; how long drawing takes (one
process, nnU-Net uses several) is reported beside it. Peak memory is measured in a process per trainer. Steps are those
of the middle of a run, past every warm-up. The dataset must be preprocessed; results go into a temporary folder.

With ``--effects`` it measures instead what makes a training on a CPU faster (:mod:`step_effects`): about 3 minutes.
"""

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import quantiles
from typing import Any

from performance_page import benchmark_table, effects_tables
from provenance import provenance, write_json
from step_effects import measure_effects
from steps import CONTROL, STOCK, Row, Task, draw, prepare_torch, read_task, seconds_of, started

from nnunet_semicon.errors import UserError

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


def rows_to_measure(task: Task) -> list[Row]:
    """Return stock, the control with all rows, and with ``labeled_per_step`` where that is set, and every method."""
    from nnunet_semicon import trainers
    from nnunet_semicon.configuration.plans import inherited_block

    share = inherited_block(task.plans["configurations"], task.configuration).get("labeled_per_step")
    controls = [Row(STOCK, None), Row(CONTROL, None), *([Row(CONTROL, share)] if share is not None else [])]
    methods = [name for name in trainers.__all__ if name != CONTROL]
    return [
        *controls,
        *(Row(name, share, changes) for name in methods for changes in ({}, *OTHERS.get(name, []))),
    ]


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
    parser.add_argument("--effects", action="store_true", help="measure precision, jobs and memory on a CPU instead")
    parser.add_argument("--steps", type=int, default=20, help="measured steps per trainer (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="F.json", help="write the measurement there")
    return parser.parse_args(argv)


def execute(args: argparse.Namespace) -> None:
    """Measure, print the tables and write the JSON file."""
    if args.steps < 2 or args.warmup < 0:
        raise UserError(f"--steps {args.steps} --warmup {args.warmup}: expected at least 2 steps and 0 for warming up")
    if args.effects and args.device != "cpu":
        raise UserError(f"--effects --device {args.device}: the effects are those of a CPU, expected --device cpu")
    origin = provenance(args.device)
    task = read_task(args)
    content = {
        "dataset": task.plans["dataset_name"],
        "configuration": args.c,
        "fold": task.fold,
        "seed": args.seed,
        "warmup": args.warmup,
        "steps": args.steps,
        **origin,
    }
    if args.effects:
        content["variants"] = measure_effects(task, args.warmup, args.steps)
        print(effects_tables(content))
    else:
        rows = rows_to_measure(task)
        memory = [measure_memory(task, row) for row in rows]
        times = measure_time(task, rows, args.warmup, args.steps)
        content["rows"] = [{**time_of, **memory_of} for time_of, memory_of in zip(times, memory, strict=True)]
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
