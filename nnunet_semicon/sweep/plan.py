"""What there is to do: the state of every cell, from its result folder, and the command that it needs."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_semicon.configuration.config import BLOCK
from nnunet_semicon.configuration.plans import values_of
from nnunet_semicon.configuration.resolved import changes, changes_in_words
from nnunet_semicon.errors import UserError, listing
from nnunet_semicon.sweep.cells import Cell
from nnunet_semicon.sweep.file import Sweep
from nnunet_semicon.sweep.locks import is_locked
from nnunet_semicon.sweep.weights import fingerprint, is_whole, read_checkpoint

FINAL, LATEST = "checkpoint_final.pth", "checkpoint_latest.pth"
SUMMARY = Path("validation") / "summary.json"
RECORD = "sweep.json"
LOG = "sweep.log"  # a locked one belongs to a training


class Standing(Enum):
    """Where a cell stands."""

    START = "to be started"
    RESUME = "to be resumed"
    VALIDATE = "to be validated"
    FINISHED = "finished"


@dataclass(frozen=True)
class Record:
    """What a sweep notes in a cell's result folder, because nnU-Net does not.

    Attributes:
        sweep: the file.
        weights: the checkpoint that the training started from.
        fingerprint: of that checkpoint.
        minutes: spent so far.
    """

    sweep: str
    weights: str | None
    fingerprint: str | None
    minutes: float


@dataclass(frozen=True)
class Plan:
    """A sweep, ready to run.

    Attributes:
        sweep: the file.
        cells: name -> cell, each after the one that it starts from.
        results: folder of the dataset in ``nnUNet_results``.
        plans: content of the plans file, with the configurations of the sweep.
        pretraining: trainers that segment nothing, so that there is nothing to validate.
    """

    sweep: Sweep
    cells: Mapping[str, Cell]
    results: Path
    plans: Mapping[str, Any]
    pretraining: frozenset[str]

    def model_folder(self, cell: Cell) -> Path:
        """Return nnU-Net's folder of all folds of a cell's configuration."""
        return self.results / f"{cell.stage.trainer}__{self.plans['plans_name']}__{cell.configuration}"

    def folder(self, cell: Cell) -> Path:
        """Return nnU-Net's result folder of a cell."""
        return self.model_folder(cell) / f"fold_{cell.fold}"

    def segments(self, cell: Cell) -> bool:
        """Return whether a cell's network segments, so that it is validated."""
        return cell.stage.trainer not in self.pretraining

    def parent(self, cell: Cell) -> Cell | None:
        """Return the cell that another one starts from."""
        return None if cell.parent is None else self.cells[cell.parent]

    def weights(self, cell: Cell) -> Path | None:
        """Return the checkpoint that a cell starts from."""
        parent = self.parent(cell)
        return cell.stage.weights if parent is None else self.folder(parent) / FINAL

    def standing(self, cell: Cell) -> Standing:
        """Return where a cell stands.

        Raises:
            UserError: its final checkpoint is damaged, which nnU-Net would stumble over.
        """
        folder = self.folder(cell)
        if (folder / FINAL).is_file():
            if not is_whole(folder / FINAL):
                raise UserError(
                    f"{folder / FINAL} is damaged (its writing was interrupted): remove it, and the same command goes "
                    "on from the checkpoint before it"
                )
            validated = not self.segments(cell) or (folder / SUMMARY).is_file()
            return Standing.FINISHED if validated else Standing.VALIDATE
        latest = folder / LATEST
        return Standing.RESUME if latest.is_file() and is_whole(latest) else Standing.START

    def is_training(self, cell: Cell) -> bool:
        """Return whether a process trains a cell at this moment."""
        return is_locked(self.folder(cell) / LOG)

    def words(self, cell: Cell, standing: Standing) -> list[str]:
        """Return the stock command that a cell needs, as it is typed."""
        sweep = self.sweep
        words = ["nnUNetv2_train", sweep.dataset, cell.configuration, str(cell.fold)]
        words += ["-tr", cell.stage.trainer, "-p", sweep.plans]
        if sweep.device is not None:
            words += ["-device", sweep.device]
        weights = self.weights(cell)
        if standing is Standing.RESUME:
            words += ["--c"]  # nnU-Net refuses weights to start from beside it
        elif standing is Standing.VALIDATE:
            words += ["--val"]
        elif weights is not None:
            words += ["-pretrained_weights", str(weights)]
        return words

    # --- what earlier results were made of ---

    def record(self, cell: Cell) -> Record | None:
        """Return what a sweep noted about a cell; None where none trained it, or the note cannot be read."""
        try:
            return Record(**json.loads((self.folder(cell) / RECORD).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write_record(self, cell: Cell, record: Record) -> None:
        """Write the note, at once."""
        path = self.folder(cell) / RECORD
        temporary = path.with_name(f"{RECORD}.tmp")
        try:
            temporary.write_text(json.dumps(asdict(record), indent=2))
            os.replace(temporary, path)
        finally:
            if temporary.is_file():
                temporary.unlink()

    def refuse_other_results(self, cell: Cell) -> None:
        """Refuse results of a cell that were made with other settings, or from other weights, than it now has.

        Raises:
            UserError: names the folder and what differs.
        """
        standing = self.standing(cell)
        if standing is Standing.START:
            return
        folder = self.folder(cell)
        what_to_do = "remove that folder to train it anew, or keep it and rename the stage"
        checkpoint = folder / (LATEST if standing is Standing.RESUME else FINAL)
        changed = self._changed_settings(cell, checkpoint)
        if changed:
            raise UserError(f"{folder} was trained with other settings ({listing(changed)}): {what_to_do}")
        record = self.record(cell)
        if record is None:
            return  # trained by hand: nothing tells from which weights
        weights = self.weights(cell)
        if record.fingerprint == (fingerprint(weights) if weights is not None and weights.is_file() else None):
            return
        if weights is None:
            raise UserError(f"{folder} was trained from {record.weights}, and now starts from nothing: {what_to_do}")
        if not weights.is_file():
            raise UserError(
                f"{folder} was trained from {record.weights}, but {weights}, which the sweep names now, is not there: "
                "put it back, or remove that folder to train both anew"
            )
        before = "from scratch" if record.weights is None else f"from other weights ({record.weights}, as it was then)"
        raise UserError(f"{folder} was trained {before}, and now starts from {weights}: {what_to_do}")

    def _changed_settings(self, cell: Cell, checkpoint: Path) -> list[str]:
        args = read_checkpoint(checkpoint).get("init_args", {})
        try:
            then = _values(args["plans"], args["configuration"])
        except (KeyError, TypeError, ValueError, RuntimeError):
            raise UserError(
                f"{checkpoint} does not say with which plans it was trained: expected a checkpoint of nnU-Net; move "
                "it away to train the cell anew"
            ) from None
        now = _values(self.plans, cell.configuration)
        return changes_in_words(changes(then, now))


def _values(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """Return dotted key -> value of a configuration, inheritance resolved."""
    resolved = PlansManager(dict(plans)).get_configuration(configuration).configuration
    return values_of({BLOCK: {}, **resolved})
