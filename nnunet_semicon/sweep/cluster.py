"""Runs cells as jobs of a cluster, with submitit: one job per cell, each once the cell that it starts from is finished.

A job is ``semicon sweep FILE --cell NAME``: it goes on where the cell stopped, and ends at once if there is nothing to
do. So nothing is lost, and nothing is trained twice, whatever happens to this process or to a job.
"""

import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_semicon.errors import UserError
from nnunet_semicon.sweep.cells import Cell
from nnunet_semicon.sweep.local import Outcome, Say, State
from nnunet_semicon.sweep.plan import Plan, Standing

NO_LIMIT = 60 * 24 * 365  # minutes, for jobs on this machine; submitit's own default is a few
SECONDS = {"local": 1.0, "slurm": 15.0}  # between two looks at the jobs
LOOKS_AFTER_THE_END = 3  # a network folder may show the last file of a job a little later


def make_executor(folder: Path, which: str, values: Mapping[str, Any]) -> Any:
    """Return submitit's executor.

    Args:
        folder: for the scripts and the output of the jobs.
        which: ``slurm``, ``local`` (processes on this machine, to try it out) or ``auto``: SLURM if it is there.
        values: submitit's parameters: ``timeout_min``, ``gpus_per_node``, ``slurm_partition``, ...

    Raises:
        UserError: submitit is missing, or refuses a value; or jobs of SLURM would have submitit's limit of 5 minutes.
    """
    try:
        import submitit
    except ImportError:
        raise UserError(
            'submitit is not installed, which submits the jobs: run `pip install ".[cluster]"` in a clone of this '
            "package"
        ) from None
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=None if which == "auto" else which)
        _configure(executor, values)
    except UserError:
        with suppress(OSError):
            folder.rmdir()  # if it is empty, submitit made it
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"there is no executor '{which}' here ({error}): --executor local runs on this machine"
        ) from None
    return executor


def _configure(executor: Any, values: Mapping[str, Any]) -> None:
    limited = {"timeout_min", f"{executor.cluster}_time", f"{executor.cluster}_timeout_min"} & set(values)
    if executor.cluster == "local":
        values = {"timeout_min": NO_LIMIT, **values}
    elif not limited:
        raise UserError(
            "--launcher-args has no time limit, and that of submitit is 5 minutes: add timeout_min=MINUTES, the "
            "longest that a cell may take"
        )
    try:
        executor.update_parameters(**{"name": "semicon", **values})
    except (AssertionError, NameError, TypeError, ValueError) as error:
        raise UserError(f"submitit refuses --launcher-args: {' '.join(str(error).split())}") from None


@dataclass
class Cluster:
    """Submits the cells of a sweep and waits for them.

    Attributes:
        plan: the sweep.
        executor: see :func:`make_executor`.
        words: cell -> command of its job.
        at_most: jobs at the same time; None: as many as can run.
        say: prints a line.
        jobs: cell -> its job.
    """

    plan: Plan
    executor: Any
    words: Callable[[Cell], list[str]]
    at_most: int | None
    say: Say
    jobs: dict[str, Any] = field(default_factory=dict)

    def running(self) -> dict[str, str]:
        """Return cell -> id of the jobs that wait or run."""
        return {name: str(job.job_id) for name, job in self.jobs.items() if not job.done()}

    def run_all(self) -> dict[str, Outcome]:
        """Submit cells as soon as they can start, until all are finished, failed or cannot start; return outcomes.

        Raises:
            UserError: a job cannot be submitted; those that were go on.
        """
        outcomes: dict[str, Outcome] = {}
        looks: dict[str, int] = {}
        cells = self.plan.cells
        with tqdm(total=len(cells), unit="cell", disable=None) as bar:
            while True:
                for cell in cells.values():
                    outcome = None if cell.name in outcomes else self._look(cell, outcomes, looks)
                    if outcome is not None:
                        outcomes[cell.name] = outcome
                        bar.update()
                        why = f": {outcome.why}" if outcome.why else ""
                        self.say(f"[{len(outcomes)}/{len(cells)}] {cell.name}: {outcome.state.value}{why}")
                if len(outcomes) == len(cells):
                    return {name: outcomes[name] for name in cells}
                time.sleep(SECONDS.get(self.executor.cluster, SECONDS["slurm"]))

    def _look(self, cell: Cell, outcomes: Mapping[str, Outcome], looks: dict[str, int]) -> Outcome | None:
        """Return what became of a cell, or None as long as nothing did; submit it if it can start."""
        job = self.jobs.get(cell.name)
        if job is not None and not job.done():
            return None
        if self.plan.standing(cell) is Standing.FINISHED:
            return Outcome(State.BEFORE if job is None else State.TRAINED)
        if self.plan.is_training(cell):  # by a job of an earlier call, or by hand
            return None
        if job is not None:
            looks[cell.name] = looks.get(cell.name, 0) + 1
            return None if looks[cell.name] < LOOKS_AFTER_THE_END else self._failed(job)
        if cell.parent is not None:
            parent = outcomes.get(cell.parent)
            if parent is None:
                return None
            if not parent.finished:
                return Outcome(State.NOT_RUN, f"it starts from {cell.parent}, which is not finished")
        if self.at_most is None or len(self.running()) < self.at_most:
            self._submit(cell)
        return None

    def _submit(self, cell: Cell) -> None:
        import submitit

        try:
            job = self.executor.submit(submitit.helpers.CommandFunction(self.words(cell)))
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            raise UserError(
                f"the job of {cell.name} cannot be submitted ({' '.join(str(error).split())}): correct "
                "--launcher-args; the same command goes on"
            ) from None
        self.jobs[cell.name] = job
        self.say(f"{cell.name}: {self.plan.standing(cell).value} in job {job.job_id}")

    @staticmethod
    def _failed(job: Any) -> Outcome:
        return Outcome(
            State.FAILED,
            f"job {job.job_id} ended in state {job.state} without finishing the cell; its output is in "
            f"{job.paths.stdout} and {job.paths.stderr}; if it only ran out of time, the same command goes on",
        )
