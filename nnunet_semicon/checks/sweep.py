"""All that is checked before ``semicon sweep`` writes or starts anything: trainers, values, folds, weights."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_semicon.catalogue import find_any_trainer
from nnunet_semicon.checks.settings import check_variants
from nnunet_semicon.configuration.plans import (
    BATCH_SIZE,
    add_configuration,
    inherited_block,
    read_plans,
    write_plans,
)
from nnunet_semicon.data.splits import FILE, FOLDS_DRAWN, check_fold, read_splits, refuse_too_few_to_draw
from nnunet_semicon.errors import UserError, listing, nearest
from nnunet_semicon.experiments.file import ALL, BFLOAT16, FASTEST, Stage, Sweep
from nnunet_semicon.experiments.locks import exclusive
from nnunet_semicon.experiments.plan import Plan
from nnunet_semicon.experiments.trainings import Training, make_trainings, variants_of_stage
from nnunet_semicon.experiments.variants import MOST_CONFIGURATIONS, Places, refuse_replacing
from nnunet_semicon.experiments.weights import Network, misfit, network_in, network_of
from nnunet_semicon.files import read_object_or_none
from nnunet_semicon.processor import has_bfloat16
from nnunet_semicon.training.semi_trainer import SemiTrainer
from nnunet_semicon.workspace import Place, find_plans, raw_folder, results_folder

IN_STAGE = Places("'set'", "'grid'", "'seeds'", "choose another name for it")
PRECISION = "precision"


def prepare(
    sweep: Sweep, training: str | None = None, force: bool = False, write: bool = True
) -> tuple[Plan, list[str]]:
    """Check everything, then write the configurations; return the plan and the trainings to run.

    Args:
        sweep: what the file says.
        training: name or number of the only one to run; None: all.
        force: replace configurations of ours that have other values.
        write: whether the plans file is written.

    Raises:
        UserError: anything is wrong; then nothing is written.
    """
    results = Path(results_folder()).absolute()
    place = find_plans(sweep.dataset, sweep.plans, option=f"'plans' in {sweep.path}")
    trainers = {}
    for stage in sweep.stages.values():
        with _in_stage(stage, sweep):
            trainers[stage.name] = _check_stage(stage, place)
            if stage.measure is not None:
                raw_folder()
    sweep = with_precision(sweep, trainers)

    def variants(stage: Stage, name: str, seed: int | None) -> Mapping[str, Mapping[str, Any]]:
        with _in_stage(stage, sweep):
            return variants_of_stage(stage, name, seed)

    trainings = make_trainings(sweep, variants)
    number = len({training.configuration for training in trainings.values()})
    if number > MOST_CONFIGURATIONS:
        raise UserError(f"{sweep.path} asks for {number} configurations, expected at most {MOST_CONFIGURATIONS}")
    names = list(trainings) if training is None else [named(trainings, training)]

    plans = _with_configurations(place.plans, sweep, trainings, force)
    pretraining = frozenset(trainer.__name__ for trainer in trainers.values() if _is_pretraining(trainer))
    plan = Plan(sweep, trainings, results / place.dataset, plans, pretraining)
    _check_folds(plan, place, names)
    _check_weights(plan, place, trainers, names)
    for name in _with_ancestors(plan, names):
        plan.refuse_other_results(trainings[name])

    if write:
        with exclusive(place.path):  # jobs that start together all come here
            now = read_plans(place.path)
            after = _with_configurations(now, sweep, trainings, force)
            if after != now:
                write_plans(after, place.path)
    return plan, names


@contextmanager
def _in_stage(stage: Stage, sweep: Sweep) -> Iterator[None]:
    """Say in which stage something is wrong."""
    try:
        yield
    except UserError as error:
        raise UserError(f"stage '{stage.name}' of {sweep.path}: {error}") from None


def _check_stage(stage: Stage, place: Place) -> type[nnUNetTrainer]:
    """Check trainer, configuration, values and measurement of a stage; return the trainer.

    Raises:
        UserError: one of them is wrong.
    """
    trainer = find_any_trainer(stage.trainer)
    ours = trainer if issubclass(trainer, SemiTrainer) else None
    check_variants(stage.configuration, stage.set, stage.grid, stage.seeds != (None,), place, IN_STAGE, ours)
    if ours is None:
        used = {**inherited_block(place.configurations, stage.configuration), **stage.set, **stage.grid}
        ignored = [key for key in used if key not in (BATCH_SIZE, "seed")]
        if ignored:
            raise UserError(
                f"'{ignored[0]}' is a hyper-parameter of ours, which the stock trainer {stage.trainer} would ignore: "
                f"it obeys only {BATCH_SIZE}; nnUNetTrainerSupervisedControl is that trainer, and obeys all of them"
            )
    if stage.measure is not None and ALL in stage.folds and not _is_pretraining(trainer):
        raise UserError(f"fold {ALL} has no validation cases to measure: add `measure: null`, or give numbers of folds")
    return trainer


def with_precision(sweep: Sweep, trainers: Mapping[str, type[nnUNetTrainer]]) -> Sweep:
    """Return the sweep with its precision as a setting of every stage of ours that has none of its own.

    ``fastest`` is bfloat16 on a processor that multiplies in it, and each trainer's default otherwise.
    """
    precision = sweep.precision
    if precision == FASTEST:
        precision = BFLOAT16 if sweep.device == "cpu" and has_bfloat16() else None
    if precision is None:
        return sweep
    stages = {
        name: replace(stage, set={PRECISION: precision, **stage.set})
        if issubclass(trainers[name], SemiTrainer) and PRECISION not in stage.grid
        else stage
        for name, stage in sweep.stages.items()
    }
    return replace(sweep, stages=stages)


def _is_pretraining(trainer: type[nnUNetTrainer]) -> bool:
    return issubclass(trainer, SemiTrainer) and trainer.method_class.needs.stage == "pretrain"


def _with_configurations(
    plans: Mapping[str, Any], sweep: Sweep, trainings: Mapping[str, Training], force: bool
) -> dict[str, Any]:
    """Return the plans with the configurations of all trainings.

    Raises:
        UserError: one of them exists with other values, and not ``force``; or cannot be added.
    """
    after = dict(plans)
    for training in trainings.values():
        with _in_stage(training.stage, sweep):
            after = add_configuration(
                after, training.configuration, training.stage.configuration, training.settings, IN_STAGE.rename
            )
    old, new = plans["configurations"], after["configurations"]
    for training in trainings.values():
        replaced = training.configuration in old and old[training.configuration] != new[training.configuration]
        if replaced and not force:
            with _in_stage(training.stage, sweep):
                refuse_replacing([training.configuration], old, new, IN_STAGE.rename)
    return after


def named(trainings: Mapping[str, Training], name: str) -> str:
    """Return the name of the training that ``--training`` means: a name, or a number from 1.

    Raises:
        UserError: there is none.
    """
    if name in trainings:
        return name
    if name.isdigit() and 1 <= int(name) <= len(trainings):
        return list(trainings)[int(name) - 1]
    raise UserError(f"no training '{name}'{nearest(name, trainings)}; there are {len(trainings)}: {listing(trainings)}")


def _with_ancestors(plan: Plan, names: list[str]) -> list[str]:
    """Return the trainings and all that they start from."""
    found: dict[str, None] = {}
    for name in names:
        training: Training | None = plan.trainings[name]
        while training is not None:
            found[training.name] = None
            training = plan.parent(training)
    return [name for name in plan.trainings if name in found]


def _check_folds(plan: Plan, place: Place, names: list[str]) -> None:
    """Refuse a configuration that is not preprocessed, and a fold that the split does not have or cannot get.

    Raises:
        UserError: names the command that repairs it, or the folds that there are.
    """
    sweep, manager = plan.sweep, PlansManager(dict(plan.plans))
    path = os.path.join(place.preprocessed, FILE)
    splits = read_splits(path) if os.path.isfile(path) else None
    checked = set()
    for training in (plan.trainings[name] for name in names):
        stage, identifier = training.stage, manager.get_configuration(training.configuration).data_identifier
        if (identifier, training.fold) in checked:
            continue
        checked.add((identifier, training.fold))
        with _in_stage(stage, sweep):
            folder = os.path.join(place.preprocessed, identifier)
            if not os.path.isdir(folder) or not os.listdir(folder):
                raise UserError(
                    f"configuration '{stage.configuration}' is not preprocessed; run: nnUNetv2_preprocess -d "
                    f"{sweep.dataset} -plans_name {sweep.plans} -c {stage.configuration}"
                )
            cases = infer_dataset_class(folder).get_identifiers(folder)
            if splits is None and training.fold != ALL:
                refuse_too_few_to_draw(cases, place.preprocessed)
            number = FOLDS_DRAWN if splits is None else len(splits)
            if training.fold != ALL and int(training.fold) >= number:
                where = f"the {number} that nnU-Net will draw" if splits is None else path
                raise UserError(f"there is no fold {training.fold} in {where}: expected 0 to {number - 1}, or {ALL}")
            if splits is not None:
                check_fold(splits, training.fold, cases, path)


def _check_weights(plan: Plan, place: Place, trainers: Mapping[str, type[nnUNetTrainer]], names: list[str]) -> None:
    """Refuse weights that do not fit the network of the stage that starts from them.

    Raises:
        UserError: names the first difference.
    """
    description = os.path.join(place.preprocessed, "dataset.json")
    dataset_json = read_object_or_none(description)
    networks: dict[str, Network] = {}

    def network(stage: Stage) -> Network:
        if stage.name not in networks:
            if not dataset_json:
                raise UserError(f"{description} cannot be read: plan and preprocess the dataset again")
            networks[stage.name] = network_of(trainers[stage.name], place.plans, stage.configuration, dataset_json)
        return networks[stage.name]

    for stage in {plan.trainings[name].stage.name: plan.trainings[name].stage for name in names}.values():
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
