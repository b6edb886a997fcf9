"""What every measured number is committed with: machine, code, versions and time."""

import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnunet_semicon import __version__

REPOSITORY = Path(__file__).resolve().parent.parent
MEASURED_CODE = ("nnunet_semicon", "scripts", "pyproject.toml")


def provenance(device: str) -> dict[str, Any]:
    """Return where, when and with which code a measurement is made.

    Args:
        device: ``cpu`` or ``cuda``.
    """
    return {
        "device": device,
        "device_name": device_name(device),
        "cpu_count": os.cpu_count(),
        "threads": training_threads(device),
        "load_average": round(os.getloadavg()[0], 2),  # what else the machine was doing in the minute before
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": {"torch": version("torch"), "nnunetv2": version("nnunetv2"), "nnunet_semicon": __version__},
    }


def training_threads(device: str) -> int:
    """Return the number of torch threads that ``nnUNetv2_train -device ...`` sets."""
    return (os.cpu_count() or 1) if device == "cpu" else 1


def device_name(device: str) -> str:
    """Return the name of the GPU, or of the processor."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def commit() -> str:
    """Return the commit of this repository, with ``+dirty`` if code that is measured differs from it."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+dirty" if _git("status", "--porcelain", "--", *MEASURED_CODE) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def write_json(content: Any, path: Path) -> None:
    """Write a JSON file at once: a killed run leaves no half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)
