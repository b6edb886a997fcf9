"""The sweep file: YAML in, checked stages out.

Only the form is checked here (keys, types, which stage starts from which); the values of hyper-parameters are checked
by the code that checks those of ``semicon configure``.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_semicon.errors import UserError, listing, nearest
from nnunet_semicon.experiments.yaml_file import read_yaml

KEYS = ("dataset", "plan", "plans", "device", "precision", "folds", "seeds", "set", "measure", "results", "stages")
STAGE_KEYS = ("trainer", "configuration", "folds", "seeds", "set", "grid", "from", "weights", "measure")
PLAN_KEYS = ("name", "planner", "arguments", "spacing", "widths", "configurations")
MEASURE_KEYS = ("networks", "cases")
DEFAULT_PLANS, DEFAULT_PLANNER = "nnUNetPlans", "ExperimentPlanner"
DEVICES = ("cpu", "cuda", "mps")
FASTEST, BFLOAT16 = "fastest", "bfloat16"
PRECISIONS = ("float32", BFLOAT16, FASTEST)
NETWORKS = ("student", "teacher", "second")
PLANNER_ARGUMENTS = ("gpu_memory_target", "preprocessor_name")  # of nnUNetv2_plan_experiment
ALL = "all"  # the fold that trains on everything

Fold = int | str


@dataclass(frozen=True)
class PlanStep:
    """What nnU-Net plans and preprocesses before the first training.

    Attributes:
        name: plans identifier to write.
        planner: class name.
        arguments: option of ``nnUNetv2_plan_experiment`` -> value.
        spacing: target spacing in mm, in the order of ``-overwrite_target_spacing``; empty: as planned.
        widths: factor for the features of every stage of the networks, or the features themselves; None: as planned.
        configurations: those to change and to preprocess.
    """

    name: str
    planner: str
    arguments: Mapping[str, Any]
    spacing: tuple[float, ...]
    widths: float | tuple[int, ...] | None
    configurations: tuple[str, ...]


@dataclass(frozen=True)
class Measure:
    """What is measured of a finished training, on the validation cases of its fold.

    Attributes:
        networks: of :data:`NETWORKS`; those that a method lacks are left out.
    """

    networks: tuple[str, ...]


@dataclass(frozen=True)
class Stage:
    """One stage: a trainer in a configuration, for several folds and seeds.

    Attributes:
        name: what its configurations are called, before grid and seed.
        trainer: for ``-tr``.
        configuration: the one that its configurations inherit from.
        folds: numbers, or ``all``.
        seeds: None alone for trainings without a seed of their own.
        set: dotted key -> value, those of the whole file included.
        grid: dotted key -> values.
        start: the stage whose weights it starts from.
        weights: a checkpoint from elsewhere that it starts from.
        measure: None: its trainings are only trained.
    """

    name: str
    trainer: str
    configuration: str
    folds: tuple[Fold, ...]
    seeds: tuple[int | None, ...]
    set: Mapping[str, Any]
    grid: Mapping[str, Sequence[Any]]
    start: str | None
    weights: Path | None
    measure: Measure | None


@dataclass(frozen=True)
class Sweep:
    """A sweep file.

    Attributes:
        path: the file, absolute.
        dataset: id or name, as for nnU-Net.
        plan: None: the plans are there.
        plans: plans identifier.
        device: for ``-device``; None leaves the option out.
        precision: of :data:`PRECISIONS`, for every stage that sets none; None: as each trainer does by default.
        results: folder for what is measured.
        stages: name -> stage, in the order of the file.
    """

    path: Path
    dataset: str
    plan: PlanStep | None
    plans: str
    device: str | None
    precision: str | None
    results: Path
    stages: Mapping[str, Stage]


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep file.

    Raises:
        UserError: it is missing, is not YAML, or says something that is no sweep.
    """
    path = Path(path).absolute()
    content = read_yaml(path)
    where = str(path)
    if not isinstance(content, dict):
        raise UserError(f"{where} is no sweep: expected an object with the keys {', '.join(KEYS)}")
    _refuse_unknown_keys(content, KEYS, where)
    for key in ("dataset", "stages"):
        if content.get(key) is None:
            raise UserError(f"{where} has no '{key}': add it")
    stages = content["stages"]
    if not isinstance(stages, dict) or not stages:
        raise UserError(f"'stages' in {where} has no stage: expected names with a trainer and a configuration each")
    plan = None if content.get("plan") is None else _plan_step(content["plan"], f"'plan' of {where}")
    sweep = Sweep(
        path,
        _text(content, "dataset", where, numbers=True),
        plan,
        _plans(content, plan, where),
        _one_of(content, "device", DEVICES, where),
        _one_of(content, "precision", PRECISIONS, where),
        _beside(path, _text(content, "results", where) if content.get("results") else f"{path.stem}_results"),
        {str(name): _stage(str(name), stage, content, path) for name, stage in stages.items()},
    )
    _refuse_wrong_starts(sweep)
    return sweep


def _plans(content: Mapping[str, Any], plan: PlanStep | None, where: str) -> str:
    """Return the plans identifier: what the plan step writes, or what the file names."""
    named = None if content.get("plans") is None else _text(content, "plans", where)
    if plan is None:
        return named or DEFAULT_PLANS
    if named not in (None, plan.name):
        raise UserError(
            f"{where} trains with the plans '{named}', but its plan step writes '{plan.name}': leave out 'plans'"
        )
    return plan.name


def _plan_step(content: Any, where: str) -> PlanStep:
    if not isinstance(content, dict):
        raise UserError(f"{where} is {content!r}: expected an object such as {{name: nnUNetPlansBench}}")
    _refuse_unknown_keys(content, PLAN_KEYS, where)
    if content.get("name") is None:
        raise UserError(f"{where} has no 'name': add the plans identifier to write, e.g. nnUNetPlansBench")
    name = _text(content, "name", where)
    if name == DEFAULT_PLANS:
        raise UserError(f"{where} writes {DEFAULT_PLANS}, which are nnU-Net's own: choose another name")
    arguments = content.get("arguments") or {}
    if not isinstance(arguments, dict):
        raise UserError(f"'arguments' in {where} is {arguments!r}, expected an object such as {{gpu_memory_target: 4}}")
    _refuse_unknown_keys(arguments, PLANNER_ARGUMENTS, f"'arguments' in {where}")
    configurations = _several(content, "configurations", where) if content.get("configurations") else ["2d"]
    return PlanStep(
        name,
        _text(content, "planner", where) if content.get("planner") is not None else DEFAULT_PLANNER,
        arguments,
        _spacing(content, where),
        _widths(content, where),
        tuple(map(str, configurations)),
    )


def _spacing(content: Mapping[str, Any], where: str) -> tuple[float, ...]:
    value = content.get("spacing")
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) != 3 or not all(_is_number(v) and v > 0 for v in value):
        raise UserError(f"'spacing' in {where} is {value!r}, expected three numbers in mm, such as [5, 4, 4]")
    return tuple(map(float, value))


def _widths(content: Mapping[str, Any], where: str) -> float | tuple[int, ...] | None:
    value = content.get("widths")
    if value is None:
        return None
    if _is_number(value) and value > 0:
        return float(value)
    if isinstance(value, list) and value and all(_is_count(width) and width > 0 for width in value):
        return tuple(value)
    raise UserError(f"'widths' in {where} is {value!r}, expected a factor such as 0.5, or the features of every stage")


def _measure(content: Any, where: str) -> Measure | None:
    if content is None:
        return None
    if not isinstance(content, dict):
        raise UserError(f"'measure' in {where} is {content!r}, expected an object such as {{networks: [student]}}")
    _refuse_unknown_keys(content, MEASURE_KEYS, f"'measure' in {where}")
    _one_of(content, "cases", ("validation",), f"'measure' in {where}")
    networks = _several(content, "networks", f"'measure' in {where}") if content.get("networks") else ["student"]
    wrong = next((network for network in networks if network not in NETWORKS), None)
    if wrong is not None:
        raise UserError(f"'networks' in {where} has {wrong!r}, expected some of {', '.join(NETWORKS)}")
    return Measure(tuple(networks))


def _beside(path: Path, name: str) -> Path:
    """Return a path that is written relative to the sweep file."""
    return (path.parent / Path(name).expanduser()).absolute()


def _stage(name: str, content: Any, whole: Mapping[str, Any], path: Path) -> Stage:
    where = f"stage '{name}' of {path}"
    if not isinstance(content, dict):
        raise UserError(f"{where} is {content!r}: expected an object with a trainer and a configuration")
    _refuse_unknown_keys(content, STAGE_KEYS, where)
    for key in ("trainer", "configuration"):
        if content.get(key) is None:
            raise UserError(f"{where} has no '{key}': add it")
    given = {**{key: whole.get(key) for key in ("folds", "seeds", "measure")}, **content}
    grid = _grid(content, where)
    # a value of the whole file gives way to a stage's own, varied or not
    common = {key: value for key, value in _flat_set(whole, str(path)).items() if key not in grid}
    start = None if content.get("from") is None else _text(content, "from", where)
    weights = None if content.get("weights") is None else _text(content, "weights", where)
    if start is not None and weights is not None:
        raise UserError(f"{where} has both 'from' and 'weights': keep the one that it starts from")
    return Stage(
        name,
        _text(content, "trainer", where),
        _text(content, "configuration", where),
        _folds(given, where),
        _seeds(given, where),
        {**common, **_flat_set(content, where)},
        grid,
        start,
        None if weights is None else _beside(path, weights),
        _measure(given["measure"], where),
    )


def _refuse_wrong_starts(sweep: Sweep) -> None:
    """Refuse a stage that starts from one that is not there, or, over others, from itself."""
    for stage in sweep.stages.values():
        if stage.start is not None and stage.start not in sweep.stages:
            raise UserError(
                f"stage '{stage.name}' of {sweep.path} starts from '{stage.start}', which is not a stage"
                f"{nearest(stage.start, sweep.stages)}; stages are {listing(sweep.stages)}"
            )
    for name in sweep.stages:
        line = [name]
        while (start := sweep.stages[line[-1]].start) is not None:
            if start in line:
                raise UserError(
                    f"the stages {listing(line)} of {sweep.path} start from each other: correct 'from' of one"
                )
            line.append(start)


# --- values ------------------------------------------------------------------------------------------------------


def _refuse_unknown_keys(content: Mapping[Any, Any], known: Collection[str], where: str) -> None:
    unknown = next((str(key) for key in content if key not in known), None)
    if unknown is not None:
        raise UserError(f"unknown key '{unknown}' in {where}{nearest(unknown, known)}; known are {', '.join(known)}")


def _text(content: Mapping[str, Any], key: str, where: str, numbers: bool = False) -> str:
    value = content[key]
    if isinstance(value, str) and value:
        return value
    if numbers and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"'{key}' in {where} is {value!r}, expected a {'number or a ' if numbers else ''}name")


def _one_of(content: Mapping[str, Any], key: str, choices: Sequence[str], where: str) -> str | None:
    value = content.get(key)
    if value is not None and value not in choices:
        raise UserError(f"'{key}' in {where} is {value!r}, expected one of {', '.join(choices)}")
    return value


def _folds(content: Mapping[str, Any], where: str) -> tuple[Fold, ...]:
    if content["folds"] is None:
        raise UserError(f"{where} has no 'folds', nor has the whole file: add e.g. `folds: [0]`")
    folds = _several(content, "folds", where)
    wrong = next((fold for fold in folds if fold != ALL and not _is_count(fold)), None)
    if wrong is not None:
        raise UserError(f"'folds' in {where} has {wrong!r}, expected numbers from 0, or {ALL}")
    return tuple(folds)


def _seeds(content: Mapping[str, Any], where: str) -> tuple[int | None, ...]:
    if content["seeds"] is None:
        return (None,)
    seeds = _several(content, "seeds", where)
    wrong = next((seed for seed in seeds if not _is_count(seed)), None)
    if wrong is not None:
        raise UserError(f"'seeds' in {where} has {wrong!r}, expected whole numbers of at least 0")
    return tuple(seeds)


def _several(content: Mapping[str, Any], key: str, where: str) -> list[Any]:
    """Return a list, also where one value stands alone; every value is there once."""
    values = content[key] if isinstance(content[key], list) else [content[key]]
    if not values:
        raise UserError(f"'{key}' in {where} is empty, so there is nothing to train: add one")
    double = next((value for i, value in enumerate(values) if value in values[:i]), None)
    if double is not None:
        raise UserError(f"'{key}' in {where} has {double!r} twice: keep one")
    return values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _flat_set(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return dotted key -> value of ``set``, which may also be written as objects in objects."""
    values = content.get("set")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"'set' in {where} is {values!r}, expected an object such as {{num_epochs: 6}}")
    flat: dict[str, Any] = {}
    for key, value in values.items():
        for dotted, entry in _flat(str(key), value).items():
            if dotted in flat:
                raise UserError(f"'{dotted}' is twice in 'set' of {where}: keep one")
            _refuse_infinite(dotted, entry, f"'set' of {where}")
            flat[dotted] = entry
    return flat


def _refuse_infinite(key: str, value: Any, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"'{key}' in {where} is {value!r}, expected a finite number")


def _flat(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {key: value}
    return {dotted: entry for inner, v in value.items() for dotted, entry in _flat(f"{key}.{inner}", v).items()}


def _grid(content: Mapping[str, Any], where: str) -> dict[str, list[Any]]:
    grid = content.get("grid")
    if grid is None:
        return {}
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise UserError(f"'grid' in {where} is {grid!r}, expected lists of values such as {{gamma_start: [1, 2]}}")
    for key, values in grid.items():
        for value in values:
            _refuse_infinite(str(key), value, f"'grid' of {where}")
    return {str(key): values for key, values in grid.items()}
