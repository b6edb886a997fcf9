"""From plans, fingerprint, meta table, method and device to every hyper-parameter of a run, each with its reason.

block of the plans -> settings of this trainer's method -> filled by its rules -> method, table, checkpoint
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

from nnunet_semicon.configuration import rules
from nnunet_semicon.configuration.architecture import SWIN, unet_architecture
from nnunet_semicon.configuration.config import BLOCK, Settings, before, default_of, keys_of, resolve, source_of
from nnunet_semicon.configuration.cost import NetworkCost, network_cost
from nnunet_semicon.configuration.derived import SET, Derived, Filled, settings_of
from nnunet_semicon.configuration.facts import Facts
from nnunet_semicon.configuration.needs import Needs
from nnunet_semicon.configuration.run import RunConfig, learning_rate
from nnunet_semicon.configuration.wording import assignments, changes
from nnunet_semicon.errors import UserError
from nnunet_semicon.meta_labels.table import POSITION, MetaColumn, MetaTable

ROWS = ("labeled_per_step", "unlabeled_per_step")
RETIRED = ("window_size",)  # keys of earlier checkpoints that were never settings


class MethodRules(Protocol):
    """What is needed of a method's class."""

    Config: ClassVar[type[Settings]]
    defaults: ClassVar[Mapping[str, Derived]]
    paper: ClassVar[Mapping[str, Derived]]

    @classmethod
    def needs_of(cls, config: Any) -> Needs:
        """Return what the method asks of the trainer."""
        ...

    @classmethod
    def derive(cls, config: Any, facts: Facts) -> Filled[Any]:
        """Return the config with its open values filled."""
        ...


@dataclass(frozen=True)
class Resolved:
    """A run, resolved.

    Attributes:
        run: settings of every trainer; no value is open.
        config: settings of the method (an instance of its ``Config``); no value is open.
        needs: what the method asks of the trainer with these settings.
        rows: how this rank spends the rows of a step.
        too_large: why a step has the planned rows alone, where memory decided so.
        facts: what the method's own rules looked at.
        columns: columns of the meta table that serve as labels.
        reasons: key -> reason of what the method's own rules filled.
        ruled: keys whose value a rule gave, and not the user.
        settings: every hyper-parameter with its reason, in the order in which it is printed.
        unset: key -> value where the user sets nothing.
        unused: keys of the block that only other trainers know.
    """

    run: RunConfig
    config: Settings
    needs: Needs
    rows: rules.RowPlan
    too_large: str | None
    facts: Facts
    columns: Mapping[str, MetaColumn]
    reasons: Mapping[str, str]
    ruled: frozenset[str]
    settings: Mapping[str, Derived]
    unset: Mapping[str, Any]
    unused: tuple[str, ...]

    def changed(self, stored: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Return key -> value in a checkpoint and now, where they differ.

        A key that the checkpoint lacks had the value that equals the behavior of its time.

        Args:
            stored: hyper-parameter -> value, from the checkpoint.
        """
        kept = {key: value for key, value in stored.items() if key not in RETIRED}
        then = {**{key: self.unset.get(key) for key in self.settings}, **self._earlier_rows(stored), **kept}
        return changes(then, {key: derived.value for key, derived in self.settings.items()})

    def restoring(self, changed: Mapping[str, tuple[Any, Any]]) -> str:
        """Return the words after ``--set`` that bring back the values of a checkpoint; rules then give the rest.

        Args:
            changed: what :meth:`changed` returned.
        """
        # rows follow from rules too, but from those of another version or of another memory
        keys = [key for key in changed if key not in self.ruled or key in ROWS] or list(changed)
        return assignments({key: changed[key][0] for key in keys})

    def _earlier_rows(self, stored: Mapping[str, Any]) -> dict[str, int]:
        """Return the unlabeled images of a checkpoint without the key: they had what labeled rows left of the batch."""
        batch_size, labeled = stored.get("batch_size"), stored.get("labeled_per_step")
        if batch_size is None or labeled is None:
            return {}
        left = max(1, (batch_size - labeled) // max(1, self.needs.student_views))
        rows = rules.plan_rows(batch_size, labeled or None, left, self.needs, stored.get("partitions"))
        return {"unlabeled_per_step": rows.images}


def resolve_run(
    configuration: Mapping[str, Any],
    plans: Mapping[str, Any],
    fingerprint: Mapping[str, Any] | None,
    meta: MetaTable | None,
    method: type[MethodRules],
    device: str,
    where: str,
    rank_batch_size: int | None = None,
    ranks: int = 1,
    defaults: Mapping[str, Any] | None = None,
    memory: float | None = None,
    stored: Mapping[str, Any] | None = None,
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
        ranks: that share the batch.
        defaults: what the trainer sets in the place of the method's defaults, as a ``semicon`` block.
        memory: of the smallest device in bytes; None: not known, or not scarce.
        stored: settings of the checkpoint that the run goes on from; None: a new run.

    Raises:
        UserError: a value of the ``semicon`` block is refused.
    """
    block = configuration.get(BLOCK, {})
    label_columns = meta.label_columns() if meta else {}
    own = _own_defaults(method, defaults or {}, block.get("preset"))
    values = overlaid({key: derived.value for key, derived in own.items()}, block)
    run = resolve(RunConfig, values, where, label_columns)
    config = resolve(method.Config, values, where, label_columns)
    needs = method.needs_of(config)

    batch_size = configuration["batch_size"]
    partitions = partitions_of(configuration, plans, fingerprint)
    if run.partitions is not None:
        partitions = Derived(run.partitions, SET)
    cost = network_cost(configuration)
    second = None if needs.second_network is None else _second_cost(needs.second_network, configuration, cost)
    largest_share = -(-batch_size // ranks)

    def share_of(rows: rules.RowPlan, share: int) -> rules.RowPlan:
        return rows if share == batch_size else rules.share_of(rows, share, batch_size, needs, partitions.value)

    def too_large(rows: rules.RowPlan) -> str | None:
        return rules.too_large(share_of(rows, largest_share).student_rows, cost, second, memory)

    asked: tuple[int | None, int | None] = (run.labeled_per_step, run.unlabeled_per_step)  # open, where not set
    _refuse_unpaired(needs, asked, where)
    many, few = (rules.plan_rows(batch_size, *asked, needs, partitions.value, fits) for fits in (True, False))
    all_rows, why_planned = _rows_of_run(many, few, too_large, stored)

    planned = rank_batch_size or batch_size
    fitting = rules.fitting_rows(planned, share_of(all_rows, planned).student_rows, cost, second, memory)
    rows = share_of(all_rows, fitting.value)
    facts = _facts(partitions, label_columns, all_rows, cost, run.num_epochs * run.num_iterations_per_epoch)
    try:
        filled = method.derive(config, facts)
    except UserError as error:
        raise UserError(f"{error} (in {where})") from None

    filled_run = (
        Filled(run)
        .fill(partitions=partitions, learning_rate=learning_rate(run.optimizer))
        .replace(
            labeled_per_step=Derived(all_rows.labeled, all_rows.reason),
            unlabeled_per_step=Derived(all_rows.images, all_rows.reason if all_rows.images else "labeled rows only"),
        )
    )
    settings = {
        **_with_reasons(filled_run, block, own),
        **_with_reasons(filled, block, own),
        "batch_size": Derived(batch_size, "planned by nnU-Net, or set in the plans"),
        "student_rows": Derived(rows.student_rows, _rows_in_words(rows, all_rows, fitting)),
        "slice_axis": rules.slice_axis(plans["transpose_forward"]),
        "device": Derived(device, _about_device(device, memory, many, few, second)),
    }
    used = {name: meta.columns[name] for name in meta.labels()} if meta else {}
    unused = tuple(key for key in block if key not in settings)
    return Resolved(
        filled_run.config,
        filled.config,
        needs,
        rows,
        why_planned,
        facts,
        used,
        filled.reasons,
        frozenset({*filled_run.reasons, *filled.reasons, "student_rows", "slice_axis"} - set(block)),
        settings,
        _unset(method, defaults or {}, block, settings),
        unused,
    )


def overlaid(defaults: Mapping[str, Any], block: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``semicon`` block over defaults; objects are merged entry by entry."""
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


# --- parts -------------------------------------------------------------------------------------------------------


def _own_defaults(method: type[MethodRules], of_trainer: Mapping[str, Any], preset: str | None) -> dict[str, Derived]:
    """Return key -> what method, preset and trainer set in the place of the common defaults; later ones win."""
    paper = method.paper if preset == "paper" else {}
    named = {key: Derived(value, "default of this trainer") for key, value in of_trainer.items()}
    return {**method.defaults, **paper, **named}


def _with_reasons(filled: Filled[Any], block: Mapping[str, Any], own: Mapping[str, Derived]) -> dict[str, Derived]:
    """Return key -> value and where it comes from: the user, a rule, the method, or the common default."""
    settings = {}
    for key, value in settings_of(filled.config).items():
        rule = filled.reasons.get(key)
        if block.get(key) is not None or (key in block and rule is None):
            reason = SET if rule is None else f"{SET}; {rule}"
        elif rule is not None:
            reason = rule
        elif key in own:
            reason = own[key].reason
        else:
            reason = source_of(keys_of(type(filled.config))[key]) or "default"
        settings[key] = Derived(value, reason)
    return settings


def _unset(
    method: type[MethodRules], of_trainer: Mapping[str, Any], block: Mapping[str, Any], settings: Mapping[str, Derived]
) -> dict[str, Any]:
    """Return key -> value where the user sets nothing, as it was before there was the key."""
    own = _own_defaults(method, of_trainer, preset=None)
    unset = {}
    for key, field in {**keys_of(RunConfig), **keys_of(method.Config)}.items():
        earlier = before(field)
        unset[key] = own[key].value if key in own else default_of(field) if earlier is None else earlier
        if unset[key] is None and key not in block:
            unset[key] = settings[key].value  # what a rule gives
    if unset["learning_rate"] is None:
        unset["learning_rate"] = learning_rate(unset["optimizer"]).value
    return unset


def _second_cost(kind: str, configuration: Mapping[str, Any], planned: NetworkCost) -> NetworkCost:
    """Return what a second network costs; a Transformer is sized to need no more than the planned one."""
    if kind == SWIN:
        return planned
    return network_cost({**configuration, "architecture": unet_architecture(kind, configuration["architecture"])})


def _refuse_unpaired(needs: Needs, asked: tuple[int | None, int | None], where: str) -> None:
    """Refuse unequal rows for a method that pairs them.

    Raises:
        UserError: names both numbers.
    """
    labeled, unlabeled = asked
    if needs.paired and None not in asked and labeled != unlabeled:
        raise UserError(
            f"labeled_per_step is {labeled} and unlabeled_per_step is {unlabeled} in {where}, but this trainer pairs "
            "each labeled image with an unlabeled one: set both to one number, or leave one of them out"
        )


def _rows_of_run(
    many: rules.RowPlan,
    few: rules.RowPlan,
    too_large: Callable[[rules.RowPlan], str | None],
    stored: Mapping[str, Any] | None,
) -> tuple[rules.RowPlan, str | None]:
    """Return the rows of the whole batch, and why they are few where memory decides so.

    Args:
        many: those beyond the planned ones too.
        few: the planned ones alone; equal to ``many`` where there is nothing to decide.
        too_large: says why rows do not fit, None if they do.
        stored: settings of the checkpoint that the run goes on from, perhaps with another memory; None: a new run.
    """
    if many == few:
        return many, None
    if stored is not None:
        kept = tuple(stored.get(key) for key in ROWS)
        for rows in (many, few):
            if (rows.labeled, rows.images) == kept:
                return replace(rows, reason=f"{rows.reason}; as the run began"), None
    why = too_large(many)
    if why is None:
        return many, None
    return replace(few, reason=f"{few.reason}; no more than planned: {why}"), why


def _about_device(
    device: str, memory: float | None, many: rules.RowPlan, few: rules.RowPlan, second: NetworkCost | None
) -> str:
    """Say whether rows depend on the memory of a GPU, and on which."""
    if many == few and second is None:
        return "no value depends on it"
    if device != "cuda":
        return f"on {device} no value depends on it; on cuda, rows depend on the memory of the GPU"
    if memory is not None:
        return f"rows depend on its memory of {memory / 1e9:.1f} GB"
    less = "" if many == few else f": {few.labeled} labeled and {few.images} unlabeled images where more do not fit"
    return f"rows depend on the memory of the GPU, which is not known here{less}"


def _facts(
    partitions: Derived, columns: Mapping[str, str | None], rows: rules.RowPlan, network: NetworkCost, steps: int
) -> Facts:
    unusable = {name: why for name, why in columns.items() if why is not None}
    if partitions.value is None:
        unusable[POSITION] = partitions.reason
    labels = [POSITION] if partitions.value is not None else []
    labels += [name for name, why in columns.items() if why is None]
    return Facts(partitions.value, tuple(labels), unusable, rows, network, steps)


def _rows_in_words(rows: rules.RowPlan, all_rows: rules.RowPlan, fitting: Derived) -> str:
    """Say where this rank's rows come from: the plan, or its share by ranks and memory; and how many are more."""
    words = [] if rows.extra_rows and rows == all_rows else [fitting.reason]
    if rows != all_rows:
        words.append(f"here {rows.reason}")
    if rows.extra_rows:
        words.append(f"{rows.extra_rows} more than planned: memory grows with them")
    return "; ".join(words)
