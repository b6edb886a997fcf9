"""Runs cells on this machine, one after the other."""

import os
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import IO

from nnunet_semicon import commands
from nnunet_semicon.errors import UserError
from nnunet_semicon.sweep.cells import Cell
from nnunet_semicon.sweep.locks import lock
from nnunet_semicon.sweep.plan import LOG, Plan, Record, Standing
from nnunet_semicon.sweep.weights import fingerprint

Say = Callable[[str], None]


class State(Enum):
    """What became of a cell."""

    BEFORE = "finished before"
    TRAINED = "trained"
    FAILED = "failed"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Outcome:
    """What became of a cell, and why it is not finished."""

    state: State
    why: str = ""

    @property
    def finished(self) -> bool:
        """Whether others can start from it."""
        return self.state in (State.BEFORE, State.TRAINED)


def run_all(plan: Plan, say: Say) -> dict[str, Outcome]:
    """Run every cell that is not finished; a failed one stops only those that start from it.

    Args:
        plan: the sweep.
        say: prints a line.

    Returns:
        Name -> outcome of every cell.
    """
    outcomes: dict[str, Outcome] = {}
    for number, cell in enumerate(plan.cells.values(), start=1):
        outcomes[cell.name] = run_cell(plan, cell, say, f"[{number}/{len(plan.cells)}] {cell.name}")
    return outcomes


def run_cell(plan: Plan, cell: Cell, say: Say, title: str) -> Outcome:
    """Run one cell unless it is finished, cannot start yet, or another process trains it."""
    try:
        outcome = _run_cell(plan, cell, say, title)
    except UserError as error:
        outcome = Outcome(State.FAILED, str(error))
    except OSError as error:  # a full disk, or somebody else's folder
        where = error.filename or plan.folder(cell)
        why = f"{where} cannot be written ({error.strerror or error}): make room on the disk or correct the permissions"
        outcome = Outcome(State.FAILED, why)
    if outcome.state is State.BEFORE:
        say(f"{title}: finished before")
    elif outcome.state is State.TRAINED:
        say("  finished")
    else:
        say(f"{title}: {outcome.state.value}: {outcome.why}")
    return outcome


def _run_cell(plan: Plan, cell: Cell, say: Say, title: str) -> Outcome:
    parent = plan.parent(cell)
    if plan.standing(cell) is Standing.FINISHED:
        return Outcome(State.BEFORE)
    if parent is not None and plan.standing(parent) is not Standing.FINISHED:
        return Outcome(State.NOT_RUN, f"it starts from {parent.name}, which is not finished")
    folder = plan.folder(cell)
    log_file = folder / LOG
    folder.mkdir(parents=True, exist_ok=True)
    with open(log_file, "ab") as log:
        if not lock(log, wait=False):
            return Outcome(State.NOT_RUN, "another process trains it at this moment")
        standing = plan.standing(cell)  # it may have changed before the lock
        if standing is Standing.FINISHED:
            return Outcome(State.BEFORE)
        log.truncate(0)
        words = plan.words(cell, standing)
        say(f"{title}: {standing.value}")
        say(f"  $ {shlex.join(words)}")
        say(f"  output: {log_file}")
        code = _train(plan, cell, standing, words, log)
    if code != 0:
        return Outcome(State.FAILED, failure(code, log_file))
    if plan.standing(cell) is not Standing.FINISHED:
        return Outcome(State.FAILED, f"the command ended without an error, but not everything is in {folder}")
    return Outcome(State.TRAINED)


def _train(plan: Plan, cell: Cell, standing: Standing, words: Sequence[str], log: IO[bytes]) -> int:
    """Run a cell's command, note weights and minutes, return the exit code."""
    record = plan.record(cell)  # None for what was begun by hand: nothing tells from which weights
    if standing is Standing.START:
        weights = plan.weights(cell)
        of_weights = None if weights is None else fingerprint(weights)
        record = Record(str(plan.sweep.path), None if weights is None else str(weights), of_weights, 0.0)
        plan.write_record(cell, record)
    start = time.monotonic()
    try:
        return run(words, log)
    finally:
        if record is not None:
            plan.write_record(cell, replace(record, minutes=record.minutes + (time.monotonic() - start) / 60))


# --- one command -------------------------------------------------------------------------------------------------


def run(words: Sequence[str], output: IO[bytes]) -> int:
    """Run a command; if this process is interrupted, the command and all that it started are ended first.

    Args:
        words: the command.
        output: file for what it prints; it is open, and so locked, as long as anything of the command runs.

    Raises:
        UserError: it cannot be started.
    """
    process = commands.start(words, os.environ, output)
    try:
        return process.wait()
    finally:
        if process.returncode != 0:
            commands.end(process)


def failure(code: int, log: Path) -> str:
    """Return how a command ended, with the last lines of its output."""
    how = commands.how_it_ended(code)
    return f"it ended {how}; the whole output is in {log} and ends with\n{commands.last_lines(log)}"
