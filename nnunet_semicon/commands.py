"""Runs the commands of this Python environment: they end with us, with all that they started."""

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from nnunet_semicon.errors import UserError

LAST_LINES = 6  # of a failed command's output
SECONDS_TO_END = 5  # for a command that is asked to
# glibc gives the memory of every freed tensor back to the system, and gets it again one page fault at a time
KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**32)}


def start(words: Sequence[str], environment: Mapping[str, str], output: IO[bytes]) -> "subprocess.Popen[bytes]":
    """Start a command in a session of its own: an interrupt reaches only us, and all of it can be ended together.

    Args:
        words: the command.
        environment: its variables; the commands of this Python come first in its PATH. With glibc, freed memory stays
            with the command, unless the variables say otherwise.
        output: file for what it prints.

    Raises:
        UserError: it cannot be started.
    """
    folder = Path(sys.executable).parent
    path = os.pathsep.join([str(folder), os.environ.get("PATH", "")])
    try:
        return subprocess.Popen(
            list(words),
            env={**allocator(), **environment, "PATH": path, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise UserError(
            f"`{words[0]}` cannot be started ({error.strerror}): expected it in {folder}, beside the Python that runs "
            "this; `semicon doctor` checks the installation"
        ) from None


def allocator() -> dict[str, str]:
    """Return the variables that make training steps on a CPU faster with this C library; none for others than glibc."""
    return KEEP_FREED_MEMORY if platform.libc_ver()[0] == "glibc" else {}


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a command and everything that it started."""
    if os.name != "posix":
        process.kill()
    else:
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=SECONDS_TO_END)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # workers that did not listen
    process.wait()


def how_it_ended(code: int) -> str:
    """Return the end of a command that failed, in words."""
    return f"with exit code {code}" if code > 0 else f"on signal {-code}"


def last_lines(log: Path) -> str:
    """Return the last lines of a command's output, indented."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-LAST_LINES:]
    return "\n".join(f"    {line}" for line in lines) or "    (no output)"
