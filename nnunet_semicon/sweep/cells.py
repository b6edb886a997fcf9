"""From stages to cells: every cell is one training, in a configuration of its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_semicon.errors import UserError, listing
from nnunet_semicon.sweep.file import Fold, Stage, Sweep

# (stage, name, seed) -> configuration name -> settings: one for every cell of the stage's grid
Variants = Callable[[Stage, str, int | None], Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        stage: what it is a case of.
        configuration: its own configuration; nnU-Net's result folder knows neither seed nor weights.
        settings: what that configuration sets, as ``semicon configure --set`` would.
        fold: number, or ``all``.
        seed: None where it has none of its own.
        grid: what the grids of its chain add to the name of its stage.
        parent: name of the cell whose weights it starts from.
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
        """``CONFIGURATION_foldF``, different for all cells of a sweep."""
        return f"{self.configuration}_fold{self.fold}"


def make_cells(sweep: Sweep, variants: Variants) -> dict[str, Cell]:
    """Return name -> cell, seed by seed, each after the one that it starts from.

    A stage starts from the cell of the same fold and seed. If the stage before it has a single fold (or seed), that one
    serves all: one pre-training for several numbers of labels. Every cell of a grid before it gives a cell of its own.

    Raises:
        UserError: the stage before lacks the fold or the seed, or two cells would have one name.
    """
    made: dict[tuple[str, Fold, int | None], list[Cell]] = {}

    def cells_of(stage: Stage, fold: Fold, seed: int | None) -> list[Cell]:
        key = (stage.name, fold, seed)
        if key not in made:
            parents: list[Cell | None] = [None]
            if stage.start is not None:
                before = sweep.stages[stage.start]
                same_fold = _matching(before.folds, fold, "fold", stage, sweep.path)
                same_seed = _matching(before.seeds, seed, "seed", stage, sweep.path)
                parents = [*cells_of(before, same_fold, same_seed)]
            made[key] = [cell for parent in parents for cell in _cells(stage, fold, seed, parent, variants)]
        return made[key]

    seeds = dict.fromkeys(seed for stage in sweep.stages.values() for seed in stage.seeds)
    for seed in seeds:
        for stage in sweep.stages.values():
            if seed in stage.seeds:
                for fold in stage.folds:
                    cells_of(stage, fold, seed)
    cells: dict[str, Cell] = {}
    owner: dict[str, str] = {}
    for cell in (cell for several in made.values() for cell in several):
        other = owner.setdefault(cell.configuration, cell.stage.name)
        if other != cell.stage.name or cell.name in cells:
            raise UserError(
                f"two cells of {sweep.path}, of the stages '{other}' and '{cell.stage.name}', would have the "
                f"configuration '{cell.configuration}': rename one of the stages, or leave out one of the values"
            )
        cells[cell.name] = cell
    return cells


def _cells(stage: Stage, fold: Fold, seed: int | None, parent: Cell | None, variants: Variants) -> list[Cell]:
    base = stage.name + (parent.grid if parent is not None else "")
    of_seed = "" if seed is None else f"_s{seed}"
    return [
        Cell(
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
