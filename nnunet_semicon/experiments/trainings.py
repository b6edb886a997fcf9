"""From stages to trainings, each in a configuration of its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_semicon.errors import UserError, listing
from nnunet_semicon.experiments.file import Fold, Stage, Sweep
from nnunet_semicon.experiments.variants import variants_of

# (stage, name, seed) -> configuration name -> settings: one for every combination of the stage's grid
Variants = Callable[[Stage, str, int | None], Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        stage: what it is a case of.
        configuration: its own configuration; nnU-Net's result folder knows neither seed nor weights.
        settings: what that configuration sets, as ``semicon configure --set`` would.
        fold: number, or ``all``.
        seed: None where it has none of its own.
        grid: what the grids of its chain add to the name of its stage.
        parent: name of the training whose weights it starts from.
    """

    stage: Stage
    configuration: str
    settings: Mapping[str, Any]
    fold: Fold
    seed: int | None
    grid: str
    parent: str | None

    @property
    def name(self) -> str:
        """``CONFIGURATION_foldF``, different for all trainings of a sweep."""
        return f"{self.configuration}_fold{self.fold}"

    @property
    def method(self) -> str:
        """Stage and grid: the same for all its folds and seeds."""
        return f"{self.stage.name}{self.grid}"


def variants_of_stage(stage: Stage, name: str, seed: int | None) -> Mapping[str, Mapping[str, Any]]:
    """Return configuration name -> settings, as the file says them."""
    return variants_of(name, stage.set, stage.grid, None if seed is None else [seed])


def make_trainings(sweep: Sweep, variants: Variants = variants_of_stage) -> dict[str, Training]:
    """Return name -> training, seed by seed, each after the one that it starts from.

    A stage starts from the training of the same fold and seed. If the stage before it has a single fold (or seed), that
    one serves all: one pre-training for several numbers of labels. Every training of a grid has its own successors.

    Raises:
        UserError: the stage before lacks the fold or the seed, or two trainings would have one name.
    """
    made: dict[tuple[str, Fold, int | None], list[Training]] = {}

    def trainings_of(stage: Stage, fold: Fold, seed: int | None) -> list[Training]:
        key = (stage.name, fold, seed)
        if key not in made:
            parents: list[Training | None] = [None]
            if stage.start is not None:
                before = sweep.stages[stage.start]
                same_fold = _matching(before.folds, fold, "fold", stage, sweep.path)
                same_seed = _matching(before.seeds, seed, "seed", stage, sweep.path)
                parents = [*trainings_of(before, same_fold, same_seed)]
            made[key] = [training for parent in parents for training in _trainings(stage, fold, seed, parent, variants)]
        return made[key]

    seeds = dict.fromkeys(seed for stage in sweep.stages.values() for seed in stage.seeds)
    for seed in seeds:
        for stage in sweep.stages.values():
            if seed in stage.seeds:
                for fold in stage.folds:
                    trainings_of(stage, fold, seed)
    trainings: dict[str, Training] = {}
    owner: dict[str, str] = {}
    for training in (training for several in made.values() for training in several):
        other = owner.setdefault(training.configuration, training.stage.name)
        if other != training.stage.name or training.name in trainings:
            raise UserError(
                f"two trainings of {sweep.path}, of the stages '{other}' and '{training.stage.name}', would have the "
                f"configuration '{training.configuration}': rename one of the stages, or leave out one of the values"
            )
        trainings[training.name] = training
    return trainings


def _trainings(
    stage: Stage, fold: Fold, seed: int | None, parent: Training | None, variants: Variants
) -> list[Training]:
    base = stage.name + (parent.grid if parent is not None else "")
    of_seed = "" if seed is None else f"_s{seed}"
    return [
        Training(
            stage,
            name,
            settings,
            fold,
            seed,
            name.removesuffix(of_seed)[len(stage.name) :],
            None if parent is None else parent.name,
        )
        for name, settings in variants(stage, base, seed).items()
    ]


def _matching(there: tuple[Any, ...], wanted: Any, what: str, stage: Stage, path: Path) -> Any:
    """Return the wanted fold or seed of the stage before, or its only one."""
    if wanted in there:
        return wanted
    if len(there) == 1:
        return there[0]
    has = f"{what} {wanted}" if wanted is not None else f"no {what}"
    raise UserError(
        f"stage '{stage.name}' of {path} has {has} but starts from '{stage.start}', which has only the {what}s "
        f"{listing(map(str, there))}: add it there, or give '{stage.start}' a single {what} that serves all"
    )
