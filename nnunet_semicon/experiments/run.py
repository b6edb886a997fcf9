"""Runs single commands for a sweep: each is ended with the sweep, and says how much memory it took."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import IO

from nnunet_semicon import commands, processor

POLL_SECONDS = 0.1  # between two looks at a command
MOST_LOADERS = 12  # processes that load data for one training; nnU-Net's default on most machines
THREADS, LOADERS, WAITING = "OMP_NUM_THREADS", "nnUNet_n_proc_DA", "OMP_WAIT_POLICY"


class StoppedError(Exception):
    """The sweep ends, and so did the command."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: exit code; negative: minus the signal.
        peak_memory_mib: largest resident set of one of its processes; None where the system does not tell.
    """

    code: int
    peak_memory_mib: int | None


@dataclass(frozen=True)
class Runner:
    """Runs commands from any thread, until it is stopped.

    Attributes:
        environment: variables of the commands.
        stopped: set to end all commands.
    """

    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    stopped: Event = field(default_factory=Event)

    def run(self, words: Sequence[str], output: IO[bytes], variables: Mapping[str, str] | None = None) -> Ended:
        """Run a command; if the runner is stopped meanwhile, the command and all that it started are ended.

        Args:
            words: the command.
            output: file for what it prints; it is open, and so locked, as long as anything of the command runs.
            variables: added to the environment.

        Raises:
            UserError: it cannot be started.
            StoppedError: the runner was stopped.
        """
        if self.stopped.is_set():
            raise StoppedError
        process = commands.start(words, {**self.environment, **(variables or {})}, output)
        try:
            while (ended := _poll(process)) is None:
                if self.stopped.wait(POLL_SECONDS):
                    raise StoppedError
            return ended
        finally:
            if process.returncode != 0:
                commands.end(process)


def _poll(process: "subprocess.Popen[bytes]") -> Ended | None:
    if not hasattr(os, "wait4"):  # Windows
        code = process.poll()
        return None if code is None else Ended(code, None)
    pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    if pid == 0:
        return None
    process.returncode = os.waitstatus_to_exitcode(status)
    kib = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return Ended(process.returncode, round(kib / 1024))


def failure(code: int, log: Path) -> str:
    """Return how a command ended, with the last lines of its output."""
    how = commands.how_it_ended(code)
    return f"it ended {how}; the whole output is in {log} and ends with\n{commands.last_lines(log)}"


def shared(environment: Mapping[str, str], jobs: int, cores: int) -> dict[str, str]:
    """Return the variables of one of several trainings that share the cores: its threads and its loading processes.

    One training alone keeps what is set. Several get an equal share, at least one thread each; numbers that are set and
    are smaller stay.

    Args:
        environment: as it is.
        jobs: trainings side by side.
        cores: of this machine, as many as may be used.
    """
    if jobs == 1:
        return dict(environment)
    threads, loaders = max(1, cores // jobs), max(1, min(cores, MOST_LOADERS) // jobs)
    set_loaders = environment.get(LOADERS, "")
    return {
        WAITING: "PASSIVE",  # nnUNetv2_predict starts a thread per core: they must not spin against other trainings
        **environment,
        THREADS: str(min(threads, processor.threads(environment) or threads)),
        LOADERS: str(min(loaders, int(set_loaders) if set_loaders.isdigit() else loaders)),
    }


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
