"""Runs trainings as jobs of a cluster, with submitit: one job each, once the training that it starts from is finished.

A job is ``semicon sweep FILE --training NAME``: it goes on where the training stopped, and ends at once if there is
nothing to do. So nothing is lost, and nothing is trained twice, whatever happens to this process or to a job.
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
from nnunet_semicon.experiments.local import Outcome, Say, State
from nnunet_semicon.experiments.plan import Plan, Standing
from nnunet_semicon.experiments.trainings import Training

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
            "longest that a training may take"
        )
    try:
        executor.update_parameters(**{"name": "semicon", **values})
    except (AssertionError, NameError, TypeError, ValueError) as error:
        raise UserError(f"submitit refuses --launcher-args: {' '.join(str(error).split())}") from None


@dataclass
class Cluster:
    """Submits the trainings of a sweep and waits for them.

    Attributes:
        plan: the sweep.
        executor: see :func:`make_executor`.
        words: training -> command of its job.
        at_most: jobs at the same time; None: as many as can run.
        say: prints a line.
        jobs: training -> its job.
    """

    plan: Plan
    executor: Any
    words: Callable[[Training], list[str]]
    at_most: int | None
    say: Say
    jobs: dict[str, Any] = field(default_factory=dict)

    def running(self) -> dict[str, str]:
        """Return training -> id of the jobs that wait or run."""
        return {name: str(job.job_id) for name, job in self.jobs.items() if not job.done()}

    def run_all(self) -> dict[str, Outcome]:
        """Submit trainings as soon as they can start, until all are finished, failed or cannot start; return outcomes.

        Raises:
            UserError: a job cannot be submitted; those that were go on.
        """
        outcomes: dict[str, Outcome] = {}
        looks: dict[str, int] = {}
        trainings = self.plan.trainings
        with tqdm(total=len(trainings), unit="training", disable=None) as bar:
            while True:
                for training in trainings.values():
                    outcome = None if training.name in outcomes else self._look(training, outcomes, looks)
                    if outcome is not None:
                        outcomes[training.name] = outcome
                        bar.update()
                        why = f": {outcome.why}" if outcome.why else ""
                        self.say(f"[{len(outcomes)}/{len(trainings)}] {training.name}: {outcome.state.value}{why}")
                if len(outcomes) == len(trainings):
                    return {name: outcomes[name] for name in trainings}
                time.sleep(SECONDS.get(self.executor.cluster, SECONDS["slurm"]))

    def _look(self, training: Training, outcomes: Mapping[str, Outcome], looks: dict[str, int]) -> Outcome | None:
        """Return what became of a training, or None as long as nothing did; submit it if it can start."""
        job = self.jobs.get(training.name)
        if job is not None and not job.done():
            return None
        if self.plan.is_done(training):
            return Outcome(State.BEFORE if job is None else State.TRAINED)
        if self.plan.is_running(training):  # by a job of an earlier call, or by hand
            return None
        if job is not None:
            looks[training.name] = looks.get(training.name, 0) + 1
            return None if looks[training.name] < LOOKS_AFTER_THE_END else self._failed(job)
        if training.parent is not None:
            if training.parent not in outcomes:
                return None
            if self.plan.standing(self.plan.trainings[training.parent]) is not Standing.FINISHED:
                return Outcome(State.NOT_RUN, f"it starts from {training.parent}, which is not finished")
        if self.at_most is None or len(self.running()) < self.at_most:
            self._submit(training)
        return None

    def _submit(self, training: Training) -> None:
        import submitit

        try:
            job = self.executor.submit(submitit.helpers.CommandFunction(self.words(training)))
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            raise UserError(
                f"the job of {training.name} cannot be submitted ({' '.join(str(error).split())}): correct "
                "--launcher-args; the same command goes on"
            ) from None
        self.jobs[training.name] = job
        self.say(f"{training.name}: {self.plan.standing(training).value} in job {job.job_id}")

    @staticmethod
    def _failed(job: Any) -> Outcome:
        return Outcome(
            State.FAILED,
            f"job {job.job_id} ended in state {job.state} without finishing the training; its output is in "
            f"{job.paths.stdout} and {job.paths.stderr}; if it only ran out of time, the same command goes on",
        )
