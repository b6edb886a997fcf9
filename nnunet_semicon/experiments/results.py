"""The files that a sweep has measured, as ``semicon compare`` takes them."""

from dataclasses import dataclass
from pathlib import Path

from nnunet_semicon.errors import UserError
from nnunet_semicon.experiments.file import Sweep
from nnunet_semicon.experiments.trainings import make_trainings
from nnunet_semicon.files import read_object

CASES = "metric_per_case"  # what the file of a pre-training lacks


@dataclass(frozen=True)
class Result:
    """One measured fold.

    Attributes:
        file: where it is.
        run: ``<stage>__<network>_s<seed>``, the same for all folds of a run.
        fold: of the split.
    """

    file: Path
    run: str
    fold: str


def result_file(sweep: Sweep, training: str, network: str) -> Path:
    """Return the file with what was measured of one network of a training, named by its name."""
    return sweep.results / f"{training}__{network}.json"


def results_of(sweep: Sweep) -> tuple[list[Result], list[str]]:
    """Return the measured folds, stage by stage, and notes on runs that are left out because a fold is missing.

    Raises:
        UserError: nothing is measured, or a file is damaged.
    """
    if all(stage.measure is None for stage in sweep.stages.values()):
        raise UserError(f"{sweep.path} measures nothing: add e.g. `measure: {{networks: [student]}}`, or give folders")
    runs: dict[tuple[str, str], dict[str, Path]] = {}  # (method, run) -> fold -> file
    for training in make_trainings(sweep).values():
        measure = training.stage.measure
        for network in () if measure is None else measure.networks:
            method = f"{training.method}__{network}"
            run = method if training.seed is None else f"{method}_s{training.seed}"
            file = result_file(sweep, training.name, network)
            runs.setdefault((method, run), {})[str(training.fold)] = file
    found: list[Result] = []
    notes: list[str] = []
    measured = {method for (method, _), files in runs.items() if any(file.is_file() for file in files.values())}
    order = list(dict.fromkeys(method for method, _ in runs))
    for (method, run), files in sorted(runs.items(), key=lambda item: order.index(item[0][0])):
        missing = [fold for fold, file in files.items() if not file.is_file()]
        if not missing:
            results = [Result(file, run, fold) for fold, file in files.items()]
            found += [result for result in results if CASES in read_object(result.file)]
        elif method in measured:  # otherwise a network that it lacks, a pre-training, or a stage that is still to come
            where = f"fold {', '.join(missing)} is not measured"
            notes.append(f"{run} is left out, because {where}: `semicon sweep {sweep.path}` goes on")
    if not found:
        raise UserError(f"{sweep.results} holds nothing to compare: run `semicon sweep {sweep.path}` first")
    return found, notes
