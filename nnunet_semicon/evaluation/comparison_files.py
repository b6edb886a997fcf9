"""The three files of a comparison: Markdown, CSV and JSON, side by side."""

from pathlib import Path

from nnunet_semicon.errors import UserError
from nnunet_semicon.evaluation.comparison import Comparison
from nnunet_semicon.evaluation.comparison_tables import as_csv, as_json, as_markdown
from nnunet_semicon.files import read_object_or_none, write_texts

NAME = "comparison"  # of the files in a folder
WRITERS = {".md": as_markdown, ".csv": as_csv, ".json": as_json}


def write_comparison(out: str, comparison: Comparison) -> list[Path]:
    """Replace the three files, all of them or none; returns their paths.

    Args:
        out: folder, or one of the three files.
        comparison: what they say.

    Raises:
        UserError: Something else lies there, or they cannot be written.
    """
    path = Path(out)
    stem = path.with_suffix("") if path.suffix in WRITERS and not path.is_dir() else path / NAME
    targets = {stem.with_name(stem.name + suffix): write(comparison) for suffix, write in WRITERS.items()}
    existing = [target for target in targets if target.exists()]
    if existing and not _is_comparison(stem.with_name(f"{stem.name}.json")):
        raise UserError(
            f"--out {out}: {existing[0]} exists and was not written by this command; choose another name, or remove it"
        )
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        write_texts(targets)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}): check the folder {stem.parent}") from None
    return list(targets)


def _is_comparison(path: Path) -> bool:
    ours = (read_object_or_none(path) or {}).get("semicon")
    return isinstance(ours, dict) and ours.get("command") == "compare"
