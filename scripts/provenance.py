"""What scripts that measure share: the origin of a number, and how its file is written."""

from pathlib import Path
from typing import Any

from nnunet_semicon import files
from nnunet_semicon.experiments.provenance import REPOSITORY, provenance, training_threads

__all__ = ["REPOSITORY", "provenance", "training_threads", "write_json"]


def write_json(content: Any, path: Path) -> None:
    """Write a JSON file at once, in a folder that is made if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, content, indent=1)
