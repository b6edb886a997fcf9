"""What every measured number is kept with: machine, code, versions and time."""

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from nnunet_semicon import __version__
from nnunet_semicon.processor import threads

REPOSITORY = Path(__file__).resolve().parents[2]  # a checkout, or where the package is installed
MEASURED_CODE = ("nnunet_semicon", "scripts", "pyproject.toml")


def provenance(device: str, environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return where, when and with which code a measurement is made.

    Args:
        device: ``cpu``, ``cuda`` or ``mps``.
        environment: variables of the process that is measured.
    """
    return {
        "device": device,
        "device_name": device_name(device),
        "processor": processor(),
        "cpu_count": os.cpu_count(),
        "threads": training_threads(device, environment),
        "load_average": round(os.getloadavg()[0], 2),  # what else the machine was doing in the minute before
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": {"torch": version("torch"), "nnunetv2": version("nnunetv2"), "nnunet_semicon": __version__},
    }


def training_threads(device: str, environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of torch threads of a training of ours: nnU-Net's, unless ``OMP_NUM_THREADS`` is set."""
    return threads(environment) or os.cpu_count() or 1 if device == "cpu" else 1


def device_name(device: str) -> str:
    """Return the name of the GPU, or of the processor."""
    return torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else processor()


def processor() -> str:
    """Return the name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def commit() -> str:
    """Return the commit of this checkout, ``+dirty`` if measured code differs from it; ``unknown`` without one."""
    try:
        if Path(_git("rev-parse", "--show-toplevel")).resolve() != REPOSITORY:
            return "unknown"  # installed below somebody else's repository
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+dirty" if _git("status", "--porcelain", "--", *MEASURED_CODE) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return done.stdout.strip()
