"""What makes experiments on a CPU faster: bfloat16, two jobs of one thread each, freed memory that stays.

Every job is a process of its own that waits until it is asked for steps. One round asks for a few steps of each variant
in turn, and a ratio of two variants is taken within a round: whatever else the machine does meets both alike.
"""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from provenance import training_threads
from steps import CONTROL, Row, Task, draw, seconds_of, started

from nnunet_semicon.commands import KEEP_FREED_MEMORY, allocator
from nnunet_semicon.errors import UserError

STEPS_PER_ROUND = 2


@dataclass(frozen=True)
class Variant:
    """One way of training.

    Attributes:
        jobs: trainings side by side.
        threads: of each job.
        precision: of each job.
        keeps_memory: glibc keeps freed memory.
    """

    jobs: int
    threads: int
    precision: str
    keeps_memory: bool


VARIANTS = {
    "stock": Variant(1, 2, "float32", False),
    "one_thread": Variant(1, 1, "float32", False),
    "one_thread_memory": Variant(1, 1, "float32", True),
    "one_thread_bfloat16": Variant(1, 1, "bfloat16", True),
    "two_threads": Variant(1, 2, "float32", True),
    "two_jobs": Variant(2, 1, "float32", True),
    "all": Variant(2, 1, "bfloat16", True),
}


class Job:
    """A process with a trainer, right before its first step."""

    def __init__(self, task: Task, precision: str, keeps_memory: bool, log: Any) -> None:
        inherited = {key: value for key, value in os.environ.items() if key not in KEEP_FREED_MEMORY}
        # threads that wait must not take the processor from another job
        chosen = {"OMP_WAIT_POLICY": "PASSIVE", **(allocator() if keeps_memory else {})}
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env={**inherited, **chosen},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        self.ask({"task": asdict(task), "precision": precision})

    def ask(self, request: dict[str, Any]) -> None:
        """Send a request without waiting for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Wait for the answer.

        Raises:
            UserError: the process died.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise UserError(f"a job died: {self.log.read().decode(errors='replace').strip()[-2000:]}")
        return dict(json.loads(line))

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


def measure_effects(task: Task, warmup: int, steps: int) -> dict[str, dict[str, Any]]:
    """Return variant -> how it trains, steps per second of all its jobs in every round, and peak memory of a job (MiB).

    Args:
        task: what to train on; the control with the rows of the configuration.
        warmup: steps of every job before the clock starts.
        steps: measured steps of every variant.
    """
    kinds = {(v.precision, v.keeps_memory): 0 for v in VARIANTS.values()}
    for v in VARIANTS.values():
        kinds[v.precision, v.keeps_memory] = max(kinds[v.precision, v.keeps_memory], v.jobs)
    with ExitStack() as stack:
        jobs: dict[tuple[str, bool], list[Job]] = {}
        for (precision, keeps_memory), count in kinds.items():
            jobs[precision, keeps_memory] = []
            for _ in range(count):
                job = Job(task, precision, keeps_memory, stack.enter_context(tempfile.TemporaryFile()))
                stack.callback(job.end)
                job.answer()  # it is ready
                jobs[precision, keeps_memory].append(job)
                _steps_per_second([job], 1, max(1, warmup))
        rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
        rounds = max(1, steps // STEPS_PER_ROUND)
        for number in range(rounds):
            for name, v in VARIANTS.items():
                chosen = jobs[v.precision, v.keeps_memory][: v.jobs]
                rates[name].append(_steps_per_second(chosen, v.threads, STEPS_PER_ROUND))
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
        peaks = {kind: [_peak(job) for job in own] for kind, own in jobs.items()}
    return {
        name: {
            **asdict(v),
            "steps_per_second": rates[name],
            "peak_memory_mib": median(peaks[v.precision, v.keeps_memory]),
        }
        for name, v in VARIANTS.items()
    }


def _steps_per_second(jobs: list[Job], threads: int, steps: int) -> float:
    def run() -> None:
        for job in jobs:
            job.ask({"threads": threads, "steps": steps})
        for job in jobs:
            job.answer()

    return len(jobs) * steps / seconds_of(run, "cpu")


def _peak(job: Job) -> float:
    job.ask({"threads": 1, "steps": 0})
    return float(job.answer()["peak_memory_mib"])


def work() -> None:
    """Be a job: answer requests for steps until the other end closes."""
    import resource

    import torch

    answers, sys.stdout = sys.stdout, sys.stderr
    request = json.loads(sys.stdin.readline())
    torch.set_num_threads(training_threads("cpu"))
    os.environ.pop("OMP_NUM_THREADS", None)  # the requests say how many
    trainer = started(Task(**request["task"]), Row(CONTROL, None, {"precision": request["precision"]}))
    batch = draw(trainer)
    print(json.dumps({}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        torch.set_num_threads(request["threads"])
        for _ in range(request["steps"]):
            trainer.train_step(dict(batch))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        print(json.dumps({"peak_memory_mib": peak}), file=answers, flush=True)


if __name__ == "__main__":
    work()
