"""All that is checked before ``semicon sweep`` writes or starts anything: trainers, values, folds, weights."""

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_semicon.errors import UserError, listing, nearest

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_semicon.sweep.cells import Cell
    from nnunet_semicon.sweep.file import Stage, Sweep
    from nnunet_semicon.sweep.plan import Plan
    from nnunet_semicon.workspace import Place


@dataclass(frozen=True)
class Checked:
    """A stage whose trainer and values were checked: dotted keys are resolved, texts are values."""

    trainer: "type[nnUNetTrainer]"
    values: Mapping[str, Any]
    grid: Mapping[str, list[Any]]


def prepare(args: argparse.Namespace) -> "tuple[Plan, list[str]]":
    """Check everything, then write the configurations (unless ``--dry-run``); return the plan and the cells to run.

    Raises:
        UserError: anything is wrong; then nothing is written.
    """
    from nnunet_semicon.cli.settings import MOST_CONFIGURATIONS, variants_of
    from nnunet_semicon.configuration.plans import read_plans, write_plans
    from nnunet_semicon.sweep.cells import make_cells
    from nnunet_semicon.sweep.file import read_sweep
    from nnunet_semicon.sweep.locks import exclusive
    from nnunet_semicon.sweep.plan import Plan
    from nnunet_semicon.workspace import find_plans, results_folder

    sweep = read_sweep(args.file)
    results = Path(results_folder()).absolute()
    place = find_plans(sweep.dataset, sweep.plans, option=f"'plans' in {sweep.path}")
    checked = {}
    for stage in sweep.stages.values():
        with _in_stage(stage, sweep):
            checked[stage.name] = _check_stage(stage, place)

    def variants(stage: "Stage", name: str, seed: int | None) -> dict[str, dict[str, Any]]:
        with _in_stage(stage, sweep):
            values = checked[stage.name]
            return variants_of(name, values.values, values.grid, None if seed is None else [seed])

    cells = make_cells(sweep, variants)
    number = len({cell.configuration for cell in cells.values()})
    if number > MOST_CONFIGURATIONS:
        raise UserError(f"{sweep.path} asks for {number} configurations, expected at most {MOST_CONFIGURATIONS}")
    names = list(cells) if args.cell is None else [named(cells, args.cell)]

    plans = _with_configurations(place.plans, sweep, cells, args.force)
    trainers = {values.trainer.__name__: values.trainer for values in checked.values()}
    pretraining = frozenset(name for name, trainer in trainers.items() if _is_pretraining(trainer))
    plan = Plan(sweep, cells, results / place.dataset, plans, pretraining)
    _check_folds(plan, place, names)
    _check_weights(plan, place, {name: values.trainer for name, values in checked.items()}, names)
    for name in _with_ancestors(plan, names):
        plan.refuse_other_results(cells[name])

    if not args.dry_run:
        with exclusive(place.path):  # jobs that start together all come here
            now = read_plans(place.path)
            after = _with_configurations(now, sweep, cells, args.force)
            if after != now:
                write_plans(after, place.path)
    return plan, names


@contextmanager
def _in_stage(stage: "Stage", sweep: "Sweep") -> Iterator[None]:
    """Say in which stage something is wrong, in words of the file; the checks are those of ``semicon configure``."""
    try:
        yield
    except UserError as error:
        text = str(error).replace("another --name", "another name for it").replace("--name", "its name")
        for key in ("set", "grid", "seeds"):
            text = text.replace(f"--{key}", f"'{key}'")
        raise UserError(f"stage '{stage.name}' of {sweep.path}: {text}") from None


def _check_stage(stage: "Stage", place: "Place") -> Checked:
    """Check trainer, configuration and values of a stage, as ``semicon configure`` does.

    Raises:
        UserError: one of them is wrong.
    """
    from nnunet_semicon.catalogue import find_any_trainer
    from nnunet_semicon.cli.key_values import refuse_overlap
    from nnunet_semicon.cli.settings import read_values
    from nnunet_semicon.configuration.plans import BATCH_SIZE, inherited_block, refuse_unknown
    from nnunet_semicon.training.semi_trainer import SemiTrainer

    trainer = find_any_trainer(stage.trainer)
    refuse_unknown(place.plans, stage.configuration)
    set_words = [f"{key}={_as_text(value)}" for key, value in stage.set.items()]
    grid_words = [f"{key}={','.join(map(_as_text, values))}" for key, values in stage.grid.items()]
    refuse_overlap(set_words, grid_words, stage.seeds != (None,))
    values, grid = read_values(argparse.Namespace(set=set_words, grid=grid_words, c=stage.configuration), place)
    if not issubclass(trainer, SemiTrainer):
        used = {**inherited_block(place.configurations, stage.configuration), **values, **grid}
        ignored = [key for key in used if key not in (BATCH_SIZE, "seed")]
        if ignored:
            raise UserError(
                f"'{ignored[0]}' is a hyper-parameter of ours, which the stock trainer {stage.trainer} would ignore: "
                f"it obeys only {BATCH_SIZE}; nnUNetTrainerSupervisedControl is that trainer, and obeys all of them"
            )
    return Checked(trainer, values, grid)


def _as_text(value: Any) -> str:
    """Return a value as it is typed after ``--set``: YAML takes 1e-3 for a text, which it is not there."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _is_pretraining(trainer: "type[nnUNetTrainer]") -> bool:
    from nnunet_semicon.training.semi_trainer import SemiTrainer

    return issubclass(trainer, SemiTrainer) and trainer.method_class.needs.stage == "pretrain"


def _with_configurations(
    plans: Mapping[str, Any], sweep: "Sweep", cells: "Mapping[str, Cell]", force: bool
) -> dict[str, Any]:
    """Return the plans with the configurations of all cells.

    Raises:
        UserError: one of them exists with other values, and not ``force``; or cannot be added.
    """
    from nnunet_semicon.cli.settings import refuse_replacing
    from nnunet_semicon.configuration.plans import add_configuration

    after = dict(plans)
    for cell in cells.values():
        with _in_stage(cell.stage, sweep):
            after = add_configuration(after, cell.configuration, cell.stage.configuration, cell.settings)
    old, new = plans["configurations"], after["configurations"]
    for cell in cells.values():
        replaced = cell.configuration in old and old[cell.configuration] != new[cell.configuration]
        if replaced and not force:
            with _in_stage(cell.stage, sweep):
                refuse_replacing([cell.configuration], old, new)
    return after


def named(cells: "Mapping[str, Cell]", name: str) -> str:
    """Return the name of the cell that ``--cell`` means: a name, or a number from 1.

    Raises:
        UserError: there is none.
    """
    if name in cells:
        return name
    if name.isdigit() and 1 <= int(name) <= len(cells):
        return list(cells)[int(name) - 1]
    raise UserError(f"no cell '{name}'{nearest(name, cells)}; there are {len(cells)}: {listing(cells)}")


def _with_ancestors(plan: "Plan", names: list[str]) -> list[str]:
    """Return the cells and all that they start from."""
    found: dict[str, None] = {}
    for name in names:
        cell: Cell | None = plan.cells[name]
        while cell is not None:
            found[cell.name] = None
            cell = plan.parent(cell)
    return [name for name in plan.cells if name in found]


def _check_folds(plan: "Plan", place: "Place", names: list[str]) -> None:
    """Refuse a configuration that is not preprocessed, and a fold that the split does not have or cannot get.

    Raises:
        UserError: names the command that repairs it, or the folds that there are.
    """
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_semicon.data.splits import ALL, FILE, FOLDS_DRAWN, check_fold, read_splits, refuse_too_few_to_draw

    sweep, manager = plan.sweep, PlansManager(dict(plan.plans))
    path = os.path.join(place.preprocessed, FILE)
    splits = read_splits(path) if os.path.isfile(path) else None
    checked = set()
    for cell in (plan.cells[name] for name in names):
        stage, identifier = cell.stage, manager.get_configuration(cell.configuration).data_identifier
        if (identifier, cell.fold) in checked:
            continue
        checked.add((identifier, cell.fold))
        with _in_stage(stage, sweep):
            folder = os.path.join(place.preprocessed, identifier)
            if not os.path.isdir(folder) or not os.listdir(folder):
                raise UserError(
                    f"configuration '{stage.configuration}' is not preprocessed; run: nnUNetv2_preprocess -d "
                    f"{sweep.dataset} -plans_name {sweep.plans} -c {stage.configuration}"
                )
            cases = infer_dataset_class(folder).get_identifiers(folder)
            if splits is None and cell.fold != ALL:
                refuse_too_few_to_draw(cases, place.preprocessed)
            number = FOLDS_DRAWN if splits is None else len(splits)
            if cell.fold != ALL and int(cell.fold) >= number:
                where = f"the {number} that nnU-Net will draw" if splits is None else path
                raise UserError(f"there is no fold {cell.fold} in {where}: expected 0 to {number - 1}, or {ALL}")
            if splits is not None:
                check_fold(splits, cell.fold, cases, path)


def _check_weights(
    plan: "Plan", place: "Place", trainers: "Mapping[str, type[nnUNetTrainer]]", names: list[str]
) -> None:
    """Refuse weights that do not fit the network of the stage that starts from them.

    Raises:
        UserError: names the first difference.
    """
    from nnunet_semicon.files import read_object_or_none
    from nnunet_semicon.sweep.weights import Network, misfit, network_in, network_of

    description = os.path.join(place.preprocessed, "dataset.json")
    dataset_json = read_object_or_none(description)
    networks: dict[str, Network] = {}

    def network(stage: "Stage") -> Network:
        if stage.name not in networks:
            if not dataset_json:
                raise UserError(f"{description} cannot be read: plan and preprocess the dataset again")
            networks[stage.name] = network_of(trainers[stage.name], place.plans, stage.configuration, dataset_json)
        return networks[stage.name]

    for stage in {plan.cells[name].stage.name: plan.cells[name].stage for name in names}.values():
        with _in_stage(stage, plan.sweep):
            if stage.weights is not None:
                reason = misfit(network_in(stage.weights), network(stage))
            elif stage.start is not None:
                reason = misfit(network(plan.sweep.stages[stage.start]), network(stage))
            else:
                continue
            if reason is not None:
                raise UserError(
                    f"the weights it starts from do not fit ({reason}): expected weights of the same architecture, "
                    "which the same configuration of the same plans gives"
                )
