"""What there is to do: the state of every training, from its result folder, and the command that it needs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_semicon.configuration.config import BLOCK
from nnunet_semicon.configuration.plans import values_of
from nnunet_semicon.configuration.wording import changes, changes_in_words
from nnunet_semicon.errors import UserError, listing
from nnunet_semicon.experiments.file import Sweep
from nnunet_semicon.experiments.locks import is_locked
from nnunet_semicon.experiments.results import result_file
from nnunet_semicon.experiments.trainings import Training
from nnunet_semicon.experiments.weights import fingerprint, has_network, is_whole, read_checkpoint
from nnunet_semicon.files import read_object_or_none, write_json

FINAL, LATEST = "checkpoint_final.pth", "checkpoint_latest.pth"
SUMMARY = Path("validation") / "summary.json"
RECORD = "sweep.json"
LOG = "sweep.log"  # a locked one belongs to a training that runs
STUDENT = "student"


class Standing(Enum):
    """Where a training stands."""

    START = "to be started"
    RESUME = "to be resumed"
    VALIDATE = "to be validated"
    FINISHED = "finished"


@dataclass(frozen=True)
class Record:
    """What a sweep notes in a training's result folder, because nnU-Net does not.

    Attributes:
        sweep: the file.
        weights: the checkpoint that the training started from.
        fingerprint: of that checkpoint.
        minutes: spent so far.
        peak_memory_mib: largest resident set of one of its processes; None: not measured.
        origin: machine, versions and time of its start, see :mod:`nnunet_semicon.experiments.provenance`.
    """

    sweep: str
    weights: str | None
    fingerprint: str | None
    minutes: float
    peak_memory_mib: int | None = None
    origin: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Plan:
    """A sweep, ready to run.

    Attributes:
        sweep: the file.
        trainings: name -> training, each after the one that it starts from.
        results: folder of the dataset in ``nnUNet_results``.
        plans: content of the plans file, with the configurations of the sweep.
        pretraining: trainers that segment nothing, so that there is nothing to validate.
    """

    sweep: Sweep
    trainings: Mapping[str, Training]
    results: Path
    plans: Mapping[str, Any]
    pretraining: frozenset[str]

    def model_folder(self, training: Training) -> Path:
        """Return nnU-Net's folder of all folds of a training's configuration."""
        return self.results / f"{training.stage.trainer}__{self.plans['plans_name']}__{training.configuration}"

    def folder(self, training: Training) -> Path:
        """Return nnU-Net's result folder of a training."""
        return self.model_folder(training) / f"fold_{training.fold}"

    def segments(self, training: Training) -> bool:
        """Return whether a training's network segments, so that it is validated."""
        return training.stage.trainer not in self.pretraining

    def parent(self, training: Training) -> Training | None:
        """Return the training that another one starts from."""
        return None if training.parent is None else self.trainings[training.parent]

    def weights(self, training: Training) -> Path | None:
        """Return the checkpoint that a training starts from."""
        parent = self.parent(training)
        return training.stage.weights if parent is None else self.folder(parent) / FINAL

    def standing(self, training: Training) -> Standing:
        """Return where a training stands.

        Raises:
            UserError: its final checkpoint is damaged, which nnU-Net would stumble over.
        """
        folder = self.folder(training)
        if (folder / FINAL).is_file():
            if not is_whole(folder / FINAL):
                raise UserError(
                    f"{folder / FINAL} is damaged (its writing was interrupted): remove it, and the same command goes "
                    "on from the checkpoint before it"
                )
            validated = not self.segments(training) or (folder / SUMMARY).is_file()
            return Standing.FINISHED if validated else Standing.VALIDATE
        latest = folder / LATEST
        return Standing.RESUME if latest.is_file() and is_whole(latest) else Standing.START

    def is_running(self, training: Training) -> bool:
        """Return whether a process trains or measures it at this moment."""
        return is_locked(self.folder(training) / LOG)

    # --- what is measured ---

    def result_file(self, training: Training, network: str) -> Path:
        """Return the file with what was measured of one network of a training."""
        return result_file(self.sweep, training.name, network)

    def networks(self, training: Training) -> tuple[str, ...]:
        """Return the networks of a training that are wanted; a pre-training has one, whose curves are kept."""
        if training.stage.measure is None:
            return ()
        return training.stage.measure.networks if self.segments(training) else (STUDENT,)

    def unmeasured(self, training: Training) -> list[str]:
        """Return the networks of a finished training that are still to be measured; it has all of them."""
        file = self.folder(training) / FINAL
        wanted = self.networks(training)
        of_file = fingerprint(file) if wanted else ""
        left = [network for network in wanted if not self._is_measured(training, network, of_file)]
        if all(network == STUDENT for network in left):
            return left
        checkpoint = read_checkpoint(file)
        return [network for network in left if network == STUDENT or has_network(checkpoint, network)]

    def _is_measured(self, training: Training, network: str, checkpoint: str) -> bool:
        """Return whether the result is there, and not that of an earlier training."""
        result = read_object_or_none(self.result_file(training, network)) or {}
        return "trainer" in result and result.get("checkpoint", checkpoint) == checkpoint

    def is_done(self, training: Training) -> bool:
        """Return whether a training is finished and measured."""
        return self.standing(training) is Standing.FINISHED and not self.unmeasured(training)

    # --- commands ---

    def words(self, training: Training, standing: Standing) -> list[str]:
        """Return the stock command that a training needs, as it is typed."""
        sweep = self.sweep
        words = ["nnUNetv2_train", sweep.dataset, training.configuration, str(training.fold)]
        words += ["-tr", training.stage.trainer, "-p", sweep.plans]
        if sweep.device is not None:
            words += ["-device", sweep.device]
        weights = self.weights(training)
        if standing is Standing.RESUME:
            words += ["--c"]  # nnU-Net refuses weights to start from beside it
        elif standing is Standing.VALIDATE:
            words += ["--val"]
        elif weights is not None:
            words += ["-pretrained_weights", str(weights)]
        return words

    # --- what earlier results were made of ---

    def record(self, training: Training) -> Record | None:
        """Return what a sweep noted about a training; None where none trained it, or the note cannot be read."""
        content = read_object_or_none(self.folder(training) / RECORD)
        try:
            return Record(**(content or {}))
        except TypeError:
            return None

    def write_record(self, training: Training, record: Record) -> None:
        """Write the note, at once."""
        write_json(self.folder(training) / RECORD, asdict(record), indent=2)

    def refuse_other_results(self, training: Training) -> None:
        """Refuse results of a training that were made with other settings, or from other weights, than it now has.

        Raises:
            UserError: names the folder and what differs.
        """
        standing = self.standing(training)
        if standing is Standing.START:
            return
        folder = self.folder(training)
        what_to_do = "remove that folder to train it anew, or keep it and rename the stage"
        checkpoint = folder / (LATEST if standing is Standing.RESUME else FINAL)
        changed = self._changed_settings(training, checkpoint)
        if changed:
            raise UserError(f"{folder} was trained with other settings ({listing(changed)}): {what_to_do}")
        record = self.record(training)
        if record is None:
            return  # trained by hand: nothing tells from which weights
        weights = self.weights(training)
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

    def _changed_settings(self, training: Training, checkpoint: Path) -> list[str]:
        args = read_checkpoint(checkpoint).get("init_args", {})
        try:
            then = _values(args["plans"], args["configuration"])
        except (KeyError, TypeError, ValueError, RuntimeError):
            raise UserError(
                f"{checkpoint} does not say with which plans it was trained: expected a checkpoint of nnU-Net; move "
                "it away to train the training anew"
            ) from None
        now = _values(self.plans, training.configuration)
        return changes_in_words(changes(then, now))


def _values(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """Return dotted key -> value of a configuration, inheritance resolved."""
    resolved = PlansManager(dict(plans)).get_configuration(configuration).configuration
    return values_of({BLOCK: {}, **resolved})
