"""From plans, fingerprint, meta table, method and device to every hyper-parameter of a run, each with its reason."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

from nnunet_semicon.configuration import rules
from nnunet_semicon.configuration.architecture import SWIN, unet_architecture
from nnunet_semicon.configuration.config import BLOCK, RunConfig, key_of, resolve
from nnunet_semicon.configuration.cost import NetworkCost, network_cost
from nnunet_semicon.configuration.rules import SET, Derived, Facts
from nnunet_semicon.errors import UserError
from nnunet_semicon.meta_labels.table import POSITION, MetaColumn, MetaTable

# a resumed run may differ in these: they change neither the data nor the weights of the finished run
MAY_CHANGE = ("device", "save_every", "student_rows")


class MethodRules(Protocol):
    """What is needed of a method's class."""

    Config: ClassVar[Any]

    @classmethod
    def needs_of(cls, config: Any) -> Any:
        """Return what the method asks of the trainer."""
        ...

    @classmethod
    def derive(cls, config: Any, facts: Facts) -> dict[str, Derived]:
        """Return what the config leaves open."""
        ...


@dataclass(frozen=True)
class Resolved:
    """A run, resolved.

    Attributes:
        run: settings of every trainer.
        config: settings of the method (an instance of its ``Config``).
        needs: what the method asks of the trainer with these settings.
        rows: how this rank spends the rows of a step.
        facts: what the method's own rules looked at.
        columns: columns of the meta table that serve as labels.
        derived: hyper-parameter of the method -> value and reason, where the config left it open.
        settings: every hyper-parameter with its reason, in the order in which it is printed.
    """

    run: RunConfig
    config: Any
    needs: Any
    rows: rules.RowPlan
    facts: Facts
    columns: Mapping[str, MetaColumn]
    derived: Mapping[str, Derived]
    settings: Mapping[str, Derived]


def resolve_run(
    configuration: Mapping[str, Any],
    plans: Mapping[str, Any],
    fingerprint: Mapping[str, Any] | None,
    meta: MetaTable | None,
    method: type[MethodRules],
    device: str,
    where: str,
    rank_batch_size: int | None = None,
    defaults: Mapping[str, Any] | None = None,
    memory: float | None = None,
) -> Resolved:
    """Resolve a run; a pure function.

    Args:
        configuration: one configuration of the plans, inheritance resolved.
        plans: content of the plans file.
        fingerprint: content of ``dataset_fingerprint.json``; None where it is missing.
        meta: meta-labels of the cases; None for a method that reads none.
        method: class of the method.
        device: ``cpu``, ``cuda`` or ``mps``.
        where: file and configuration, for error messages.
        rank_batch_size: planned rows of this rank; None: the whole batch on one device.
        defaults: what the trainer sets in the place of the method's defaults, as a ``semicon`` block.
        memory: of the device in bytes; None: not known, or not scarce.

    Raises:
        UserError: a value of the ``semicon`` block is refused.
    """
    block = configuration.get(BLOCK, {})
    own = defaults or {}
    columns = meta.label_columns() if meta else {}
    run = resolve(RunConfig, block, where, columns)
    config = resolve(method.Config, overlaid(own, block), where, columns)
    needs = method.needs_of(config)

    batch_size = configuration["batch_size"]
    partitions = partitions_of(configuration, plans, fingerprint)

    def rows_of(share: int) -> rules.RowPlan:
        labeled = run.labeled_per_step and max(1, run.labeled_per_step * share // batch_size)
        return rules.plan_rows(
            share,
            labeled,
            needs.student_views,
            partitions.value,
            needs.sample_scans,
            needs.stage,
            needs.labeled_views,
        )

    cost = network_cost(configuration)
    planned = rank_batch_size or batch_size
    second = None if needs.second_network is None else _second_cost(needs.second_network, configuration, cost)
    fitting = rules.fitting_rows(planned, cost, second, memory)
    rows, all_rows = rows_of(fitting.value), rows_of(batch_size)
    facts = _facts(partitions, columns, all_rows, cost)
    try:
        derived = {key: _with_origin(value, key in block) for key, value in method.derive(config, facts).items()}
    except UserError as error:
        raise UserError(f"{error} (in {where})") from None

    settings = {}
    for instance in (run, config):
        for f in fields(instance):
            key = key_of(f)
            reason = SET if key in block else "default of this trainer" if key in own else f.metadata["source"]
            reason = reason or "default"
            settings[key_of(f)] = Derived(getattr(instance, f.name), reason)
    settings |= {
        "batch_size": Derived(batch_size, "planned by nnU-Net, or set in the plans"),
        "labeled_per_step": Derived(all_rows.labeled, all_rows.reason),
        "student_rows": Derived(rows.student_rows, _rows_in_words(rows, all_rows, fitting)),
        "slice_axis": rules.slice_axis(plans["transpose_forward"]),
        "partitions": partitions,
        **derived,
        "device": Derived(device, "no value depends on it" if second is None else "rows depend on its memory"),
    }
    used = {name: meta.columns[name] for name in meta.labels()} if meta else {}
    return Resolved(run, config, needs, rows, facts, used, derived, settings)


def overlaid(defaults: Mapping[str, Any], block: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``semicon`` block over the defaults of a trainer; objects are merged entry by entry."""
    merged = {**defaults, **block}
    for key, value in defaults.items():
        if isinstance(value, Mapping) and isinstance(merged[key], Mapping):
            merged[key] = {**value, **merged[key]}
    return merged


def partitions_of(
    configuration: Mapping[str, Any], plans: Mapping[str, Any], fingerprint: Mapping[str, Any] | None
) -> Derived:
    """Return the number of slice-position groups of a configuration; arguments as for :func:`resolve_run`."""
    patch, image = configuration["patch_size"], configuration["median_image_size_in_voxels"]
    covered = float(patch[0] / image[0]) if len(patch) == 3 else 0.0
    return rules.partitions(rules.slice_extent(plans, fingerprint), covered)


def read_fingerprint(preprocessed_dataset: str) -> dict[str, Any] | None:
    """Return nnU-Net's ``dataset_fingerprint.json`` of a dataset, None where there is none (plans from elsewhere).

    Raises:
        UserError: it cannot be read.
    """
    path = os.path.join(preprocessed_dataset, "dataset_fingerprint.json")
    if not os.path.isfile(path):
        return None
    try:
        with open(path) as file:
            return dict(json.load(file))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): make it again with `nnUNetv2_extract_fingerprint`, or remove it"
        ) from None


def as_table(settings: Mapping[str, Derived]) -> str:
    """Return one aligned line per hyper-parameter: key, value, reason."""
    rows = [(key, in_words(value), reason) for key, (value, reason) in settings.items()]
    keys, values = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"  {key:<{keys}}  {value:<{values}}  {reason}" for key, value, reason in rows)


def in_words(value: Any) -> str:
    """Return a value as it is typed after ``--set``: numbers with at most five digits."""
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {in_words(entry)}" for key, entry in value.items()) or "none"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def differences(stored: Mapping[str, Any], settings: Mapping[str, Derived]) -> list[str]:
    """Return in words what differs between the settings of a checkpoint and those of the run that goes on from it.

    Args:
        stored: hyper-parameter -> value, from the checkpoint.
        settings: of the present run.
    """
    now = {key: derived.value for key, derived in settings.items()}
    keys = [key for key in {**stored, **now} if key not in MAY_CHANGE]
    return [
        f"{key} was {in_words(stored.get(key))} and is now {in_words(now.get(key))}"
        for key in keys
        if stored.get(key) != now.get(key)
    ]


def _second_cost(kind: str, configuration: Mapping[str, Any], planned: NetworkCost) -> NetworkCost:
    """Return what a second network costs; a Transformer is sized to need no more than the planned one."""
    if kind == SWIN:
        return planned
    return network_cost({**configuration, "architecture": unet_architecture(kind, configuration["architecture"])})


def _with_origin(derived: Derived, is_set: bool) -> Derived:
    if not is_set or derived.reason == SET:
        return derived
    return derived._replace(reason=f"{SET}; {derived.reason}")


def _facts(partitions: Derived, columns: Mapping[str, str | None], rows: rules.RowPlan, network: NetworkCost) -> Facts:
    unusable = {name: why for name, why in columns.items() if why is not None}
    if partitions.value is None:
        unusable[POSITION] = partitions.reason
    labels = [POSITION] if partitions.value is not None else []
    labels += [name for name, why in columns.items() if why is None]
    return Facts(partitions.value, tuple(labels), unusable, rows, network)


def _rows_in_words(rows: rules.RowPlan, all_rows: rules.RowPlan, fitting: Derived) -> str:
    """Say where this rank's rows come from: the plan, or its share by ranks and memory; and the method's minimum."""
    words = [] if rows.extra_rows and rows == all_rows else [fitting.reason]
    if rows != all_rows:
        words.append(f"here {rows.reason}")
    if rows.extra_rows:
        words.append(f"{rows.extra_rows} more than planned: the method's minimum; memory grows with it")
    return "; ".join(words)
