"""Commands that start in a moment: forks of a process in which their libraries are loaded already.

To import PyTorch and nnU-Net takes five seconds, for a command and again for each process that it spawns. Here the fork
server of ``multiprocessing`` imports them once per test process. In :func:`folder` lies a short script for each console
script of this environment: it runs the entry point in a fork of the server, with its own arguments, environment, folder
and output, and ends as the fork does. What the command would spawn, and commands that it starts, are forks too.

The server only imports, and starts no thread of Python: no fork can wait for a lock that another thread held. Where a
cold start is what a test is about, it says ``cold=True``. This module imports nothing heavy: the scripts begin with it.
"""

import atexit
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import entry_points
from multiprocessing import context, forkserver, reduction, resource_tracker
from pathlib import Path

PRELOAD = [
    "tests.harness",
    "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints",
    "nnunetv2.inference.predict_from_raw_data",
    "nnunet_semicon.evaluation.evaluate",
]
# What libraries read while they are imported: in a fork no command can have another value.
AT_IMPORT = {"nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
PREFIXES = ("nnUNetv2_", "semicon")
SCRIPT = """#!{python}
import sys

sys.path.insert(0, {root!r})
from tests.warm import ask

if __name__ == "__main__":  # the fork imports this file too
    sys.exit(ask({address!r}))
"""


# --- in the process of the tests ---------------------------------------------------------------------------------


def start() -> None:
    """Start the fork server of this process, unless it runs: every context ``forkserver`` uses it from now on.

    In a fork of the server that same one is used.
    """
    if forkserver.get_inherited_fds() is not None:
        _share()
        return
    multiprocessing.set_forkserver_preload(PRELOAD)
    before = dict(os.environ)
    os.environ.update(AT_IMPORT)
    try:
        forkserver.ensure_running()
    finally:
        for name in AT_IMPORT:
            del os.environ[name]
        os.environ.update(before)


@cache
def folder() -> Path:
    """The folder of the scripts, one per process of the tests."""
    start()
    made = Path(tempfile.mkdtemp(prefix="semicon_warm_"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    root = str(Path(__file__).parent.parent)
    script = SCRIPT.format(python=sys.executable, root=root, address=forkserver._forkserver._forkserver_address)
    names = {point.name for point in entry_points(group="console_scripts") if point.name.startswith(PREFIXES)}
    # `semicon sweep` finds commands beside the Python that runs it
    for name, text in {**dict.fromkeys(names, script), "python": f'#!/bin/sh\nexec {sys.executable} "$@"\n'}.items():
        (made / name).write_text(text)
        (made / name).chmod(0o755)
    return made


@contextmanager
def forks_for_spawn() -> Iterator[None]:
    """Meanwhile, processes that would be spawned are forks of the server."""
    start()
    contexts = context._concrete_contexts
    spawn, contexts["spawn"] = contexts["spawn"], Forks()
    try:
        yield
    finally:
        contexts["spawn"] = spawn


# --- in a script -------------------------------------------------------------------------------------------------


class Fork(context.ForkServerProcess):
    """A fork of the server with the environment, the folder and the output of the process that asks for it."""

    def __reduce__(self):
        # pickle restores the arguments before the state, whose modules may be imported only then
        outputs = [reduction.DupFd(number) for number in (1, 2)]
        return _restored, (dict(os.environ), os.getcwd(), outputs), self.__dict__


def _restored(environment: dict[str, str], folder: str, outputs: list) -> Fork:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, output in enumerate(outputs, 1):
        os.dup2(output.detach(), number)
    return Fork.__new__(Fork)


class Forks(context.ForkServerContext):
    """The context of such processes, to be put in the place of ``spawn``."""

    Process = Fork


def ask(address: str) -> int:
    """Run the command that this script stands for in a fork of the server at ``address``; return its exit code."""
    forkserver._forkserver._forkserver_address = address
    forkserver._forkserver._forkserver_alive_fd = os.open(os.devnull, os.O_WRONLY)  # the server lives without us
    _share()
    fork = Fork(target=_run, args=(sys.argv,))
    fork.start()
    signal.signal(signal.SIGTERM, lambda *_: fork.terminate())
    fork.join()
    return fork.exitcode if fork.exitcode >= 0 else 128 - fork.exitcode


def _share() -> None:
    """Use a server that another process has started: ``multiprocessing`` itself would start one more."""
    forkserver._forkserver.ensure_running = resource_tracker.ensure_running


# --- in the fork -------------------------------------------------------------------------------------------------


def _run(words: list[str]) -> None:
    import numpy as np
    import torch

    from nnunet_semicon.autoload import register

    processes = "nnUNet_def_n_proc"
    assert os.environ[processes] == AT_IMPORT[processes], "nnU-Net has read it already: start this command cold"
    register()  # as `import torch` does
    np.random.seed()  # forks begin with one state
    torch.seed()
    sys.stdout.reconfigure(line_buffering=True)
    sys.executable = str(Path(words[0]).parent / "python")
    sys.argv = words
    (point,) = entry_points(group="console_scripts", name=Path(words[0]).name)
    with forks_for_spawn():
        sys.exit(point.load()())
