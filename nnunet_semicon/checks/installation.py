"""Checks of the machine: versions, nnU-Net's variables, whether nnU-Net finds our trainers, devices."""

import importlib
import io
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib import metadata
from os.path import isdir

from nnunet_semicon import autoload
from nnunet_semicon.checks.findings import Finding, in_one_line, note, ok, problem
from nnunet_semicon.processor import has_bfloat16

NNUNET_VERSIONS = ((2, 8, 1), (2, 9))  # from, below; as in pyproject.toml
TORCH_MINIMUM = (2, 5)
TORCH_REFUSED_BY_NNUNET = (2, 9)
IN_WORDS = {True: "yes (precision=bfloat16 trains faster)", False: "no", None: "not known"}
REINSTALL = "run `pip install .` in a clone of this package, in a fresh environment"


# --- versions ----------------------------------------------------------------------------------------------------


def check_installation() -> Iterator[Finding]:
    """Check the versions, and that torch and torchvision fit together."""
    python = ".".join(map(str, sys.version_info[:3]))
    yield ok(f"Python {python}") if sys.version_info >= (3, 10) else problem(f"Python {python} < 3.10", REINSTALL)
    yield from check_nnunet_version(_installed("nnunetv2"))
    yield from check_torch_version(_installed("torch"))
    yield from check_torchvision()


def check_nnunet_version(version: str | None) -> Iterator[Finding]:
    """Check the version of nnU-Net (None: not installed); our trainers use parts of it that change between versions."""
    expected = ">=2.8.1,<2.9"
    if version is None:
        yield problem("nnunetv2 is not installed", f'pip install "nnunetv2{expected}"')
    elif NNUNET_VERSIONS[0] <= _numbers(version) < NNUNET_VERSIONS[1]:
        yield ok(f"nnunetv2 {version}")
    else:
        yield problem(f"nnunetv2 {version}, expected {expected}", f'pip install "nnunetv2{expected}"')


def check_torch_version(version: str | None) -> Iterator[Finding]:
    """Check the version of torch (None: not installed)."""
    if version is None:
        yield problem("torch is not installed", "pip install torch torchvision")
    elif _numbers(version)[:2] == TORCH_REFUSED_BY_NNUNET:
        yield problem(f"torch {version}: nnU-Net refuses 2.9", 'pip install "torch!=2.9.*" torchvision')
    elif _numbers(version) < TORCH_MINIMUM:
        yield problem(
            f"torch {version} < 2.5: it does not call our entry point, so nnU-Net cannot find the trainers by itself",
            'pip install "torch>=2.5,!=2.9.*" torchvision',
        )
    else:
        yield ok(f"torch {version}")


def check_torchvision() -> Iterator[Finding]:
    """Use one compiled operator of torchvision: only then it shows whether torchvision fits the installed torch."""
    version = _installed("torchvision")
    try:
        torch, ops = importlib.import_module("torch"), importlib.import_module("torchvision.ops")
        ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except Exception as error:  # ImportError, OSError of the linker, RuntimeError for an unknown operator, ...
        yield problem(
            f"torch {_installed('torch')} and torchvision {version} do not work together ({in_one_line(error)}); "
            "nnU-Net's search for trainers imports both",
            "pip install --force-reinstall torch torchvision (together, from one index)",
        )
    else:
        yield ok(f"torchvision {version}, matches torch")


def _installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: ``'2.8.1+cpu'`` -> ``(2, 8, 1)``."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match.group().split("."))) if match else ()


# --- variables ---------------------------------------------------------------------------------------------------


def check_variables() -> Iterator[Finding]:
    """Check nnU-Net's three folders."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        folder = os.environ.get(variable)
        if not folder:
            yield problem(f"{variable} is not set", f"export {variable}=/your/folder")
        elif not isdir(folder):
            yield problem(f"{variable}={folder} is not a folder", f"mkdir -p {shlex.quote(folder)}, or correct it")
        elif os.access(folder, os.W_OK):
            yield ok(f"{variable}={folder}")
        elif variable == "nnUNet_raw":
            yield note(f"{variable}={folder} is read-only: enough unless data is converted into it")
        else:
            yield problem(f"{variable}={folder} is not writable", "change its permissions, or name another folder")


# --- discovery ---------------------------------------------------------------------------------------------------


def trainer_folders() -> list[str]:
    """Return the folders that ``nnUNet_extTrainer`` names in this process."""
    return [folder for folder in os.environ.get(autoload.VARIABLE, "").split(os.pathsep) if folder.strip()]


def export_line() -> str:
    """Return the line for a shell that names our folder behind those of the user."""
    ours = autoload.trainer_folder()
    folders = [*(folder for folder in trainer_folders() if folder != ours), ours]
    return f"export {autoload.VARIABLE}={shlex.quote(os.pathsep.join(folders))}"


def check_discovery() -> Iterator[Finding]:
    """Check that nnU-Net's own search finds a trainer of ours in this process."""
    importlib.import_module("torch")  # calls our entry point, as it does in nnU-Net's commands
    for folder in trainer_folders():
        if not isdir(folder):
            yield note(f"{autoload.VARIABLE} names {folder}, which does not exist: nnU-Net skips it")
    if autoload.trainer_folder() not in trainer_folders():
        yield problem(
            f"nnU-Net does not know the folder of the trainers: {why_not_loaded() or 'torch did not call us'}",
            f"run: {export_line()}",
        )
        return
    yield ok(f"{autoload.VARIABLE} names {autoload.trainer_folder()}")
    reason = why_not_loaded()
    yield ok("torch loads it by itself") if reason is None else note(f"it is only there because you set it: {reason}")
    yield from check_search("nnUNetTrainerSPCon")


def why_not_loaded() -> str | None:
    """Return why importing torch does not add our folder, or None if it does."""
    if not _switched_on():
        return f"{autoload.SWITCH}={os.environ[autoload.SWITCH]} turns it off"
    torch_switch = os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD", "1")
    if torch_switch != "1":
        return f"TORCH_DEVICE_BACKEND_AUTOLOAD={torch_switch} keeps torch from calling entry points"
    version = _installed("torch") or "0"
    if _numbers(version) < TORCH_MINIMUM:
        return f"torch {version} calls no entry points (2.5 does)"
    if not any(e.value == "nnunet_semicon.autoload:register" for e in metadata.entry_points(group="torch.backends")):
        return "the package is not installed here, only importable, so it has no entry point (`pip install .`)"
    return None


def _switched_on() -> bool:
    """Return whether our callback does anything, by calling it."""
    before = os.environ.pop(autoload.VARIABLE, None)
    autoload.register()
    on = autoload.VARIABLE in os.environ
    os.environ.pop(autoload.VARIABLE, None)
    if before is not None:
        os.environ[autoload.VARIABLE] = before
    return on


def check_search(name: str) -> Iterator[Finding]:
    """Let nnU-Net search for a trainer, without its printing."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        with redirect_stdout(io.StringIO()):
            found = recursive_find_trainer_class_by_name(name)
    except Exception as error:  # the search imports everybody's modules
        yield problem(
            f"nnU-Net's search for {name} fails ({in_one_line(error)})",
            "if the message names a module of your own, repair it or take its folder out of nnUNet_extTrainer; "
            f"otherwise {REINSTALL}",
        )
        return
    if found is getattr(importlib.import_module("nnunet_semicon.trainers"), name):
        yield ok(f"nnU-Net finds {name}")
    else:
        yield problem(
            f"nnU-Net finds another {name}, from {found.__module__}: an earlier folder has a class of that name",
            f"rename that class, or take its folder out of {autoload.VARIABLE}",
        )


# --- devices -----------------------------------------------------------------------------------------------------


def check_devices() -> Iterator[Finding]:
    """List what training can run on."""
    torch = importlib.import_module("torch")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield ok(f"cpu: {cores} cores; bfloat16 instructions: {IN_WORDS[has_bfloat16()]}")
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield ok(f"cuda:{index}: {device.name}, {device.total_memory / 2**30:.1f} GiB")
    if torch.backends.mps.is_available():
        yield ok("mps")
    elif not torch.cuda.is_available():
        yield note("no GPU: train with `-device cpu`, slow beyond small data")
