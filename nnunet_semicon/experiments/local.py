"""Runs trainings on this machine, one after the other or several side by side, and measures them."""

import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from enum import Enum
from typing import IO

from nnunet_semicon.errors import UserError
from nnunet_semicon.experiments.locks import lock
from nnunet_semicon.experiments.measure import measure
from nnunet_semicon.experiments.plan import LOG, Plan, Record, Standing
from nnunet_semicon.experiments.provenance import provenance
from nnunet_semicon.experiments.run import Runner, failure, shared, usable_cores
from nnunet_semicon.experiments.trainings import Training
from nnunet_semicon.experiments.weights import fingerprint

Say = Callable[[str], None]
Watch = Callable[[Sequence[Training]], None]

REFRESH_SECONDS = 1.0  # of what is shown of running trainings
DEFAULT_DEVICE = "cuda"  # as nnUNetv2_train


class State(Enum):
    """What became of a training."""

    BEFORE = "finished before"
    TRAINED = "trained"
    MEASURED = "measured"
    FAILED = "failed"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Outcome:
    """What became of a training, and why it is not finished."""

    state: State
    why: str = ""

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.state in (State.BEFORE, State.TRAINED, State.MEASURED)


def run_all(plan: Plan, say: Say, jobs: int = 1, watch: Watch = lambda running: None) -> dict[str, Outcome]:
    """Run every training that is not finished; a failed one stops only those that start from it.

    An exception, such as an interrupt, ends all that runs before it is passed on.

    Args:
        plan: the sweep.
        say: prints a line.
        jobs: trainings side by side; they share the threads of this machine.
        watch: is told about every second what runs.

    Returns:
        Name -> outcome of every training.
    """
    runner = Runner(shared(os.environ, jobs, usable_cores()))
    numbers = {name: number for number, name in enumerate(plan.trainings, start=1)}
    left = dict(plan.trainings)
    running: dict[Future[Outcome], Training] = {}
    outcomes: dict[str, Outcome] = {}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while left or running:
                for training in _startable(left, outcomes, jobs - len(running)):
                    title = f"[{numbers[training.name]}/{len(numbers)}] {training.name}"
                    running[pool.submit(run_training, plan, left.pop(training.name), say, title, runner)] = training
                ended, _ = wait(running, REFRESH_SECONDS, FIRST_COMPLETED)
                for future in ended:
                    outcomes[running.pop(future).name] = future.result()
                watch(list(running.values()))
        except BaseException:
            runner.stopped.set()  # the pool waits until the commands have ended
            raise
    return {name: outcomes[name] for name in plan.trainings}


def _startable(left: Mapping[str, Training], outcomes: Mapping[str, Outcome], at_most: int) -> list[Training]:
    """Return the next trainings that wait for no other one, in their order."""
    ready = [training for training in left.values() if training.parent is None or training.parent in outcomes]
    return ready[:at_most]


def run_training(plan: Plan, training: Training, say: Say, title: str, runner: Runner) -> Outcome:
    """Train and measure, unless that is done, cannot start yet, or another process does it."""
    try:
        outcome = _run_training(plan, training, say, title, runner)
    except UserError as error:
        outcome = Outcome(State.FAILED, str(error))
    except OSError as error:  # a full disk, or somebody else's folder
        where = error.filename or plan.folder(training)
        why = f"{where} cannot be written ({error.strerror or error}): make room on the disk or correct the permissions"
        outcome = Outcome(State.FAILED, why)
    why = f": {outcome.why}" if outcome.why else ""
    say(f"{title}: {outcome.state.value}{why}")
    return outcome


def _run_training(plan: Plan, training: Training, say: Say, title: str, runner: Runner) -> Outcome:
    parent = plan.parent(training)
    if plan.is_done(training):
        return Outcome(State.BEFORE)
    if parent is not None and plan.standing(parent) is not Standing.FINISHED:
        return Outcome(State.NOT_RUN, f"it starts from {parent.name}, which is not finished")
    folder = plan.folder(training)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOG, "ab") as log:
        if not lock(log, wait=False):
            return Outcome(State.NOT_RUN, "another process trains it at this moment")
        standing = plan.standing(training)  # it may have changed before the lock
        if standing is not Standing.FINISHED:
            log.truncate(0)
            words = plan.words(training, standing)
            _announce(say, title, standing.value, words, log.name)
            code = _train(plan, training, standing, words, log, runner)
            if code != 0:
                return Outcome(State.FAILED, failure(code, folder / LOG))
            if plan.standing(training) is not Standing.FINISHED:
                why = f"the command ended without an error, but not everything is in {folder}"
                return Outcome(State.FAILED, why)
        networks = plan.unmeasured(training)
        for network in plan.networks(training):
            if network in networks:
                say(f"{title}: {network} to be measured")
                measure(plan, training, network, runner, log)
            elif not plan.result_file(training, network).is_file():
                say(f"{title}: has no {network}, which is left out")
    if standing is not Standing.FINISHED:
        return Outcome(State.TRAINED)
    return Outcome(State.MEASURED if networks else State.BEFORE)


def _announce(say: Say, title: str, what: str, words: Sequence[str], log: str) -> None:
    say(f"{title}: {what}\n  $ {shlex.join(words)}\n  output: {log}")


def _train(
    plan: Plan, training: Training, standing: Standing, words: Sequence[str], log: IO[bytes], runner: Runner
) -> int:
    """Run a training's command, note weights, machine, minutes and memory, return the exit code."""
    record = plan.record(training)  # None for what was begun by hand: nothing tells from which weights
    if standing is Standing.START:
        weights = plan.weights(training)
        of_weights = None if weights is None else fingerprint(weights)
        origin = provenance(plan.sweep.device or DEFAULT_DEVICE, runner.environment)
        record = Record(str(plan.sweep.path), None if weights is None else str(weights), of_weights, 0.0, origin=origin)
        plan.write_record(training, record)
    start = time.monotonic()
    peak = None
    try:
        ended = runner.run(words, log)
        peak = ended.peak_memory_mib
        return ended.code
    finally:
        if record is not None:
            peaks = [mib for mib in (record.peak_memory_mib, peak) if mib is not None]
            minutes = record.minutes + (time.monotonic() - start) / 60
            plan.write_record(training, replace(record, minutes=minutes, peak_memory_mib=max(peaks, default=None)))
