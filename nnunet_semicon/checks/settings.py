"""Checks what new configurations would set, before they are added to a plans file."""

from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_semicon.catalogue import check_settings
from nnunet_semicon.configuration.config import BLOCK
from nnunet_semicon.configuration.plans import inherited_block, refuse_unknown
from nnunet_semicon.experiments.variants import Places, nested, refuse_overlap, refuse_twice
from nnunet_semicon.training.semi_trainer import SemiTrainer
from nnunet_semicon.workspace import Place, label_columns


def check_variants(
    parent: str,
    values: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
    has_seeds: bool,
    place: Place,
    places: Places,
    trainer: type[SemiTrainer] | None = None,
) -> dict[str, list[str]]:
    """Check the settings of configurations that inherit from another one; those that they inherit too.

    Args:
        parent: the configuration that they inherit from.
        values: dotted key -> value that all have in common.
        grid: dotted key -> values.
        has_seeds: whether seeds are given apart.
        place: plans and data.
        places: how messages name the places that the values come from.
        trainer: the one that is going to run, if it is known and one of ours.

    Returns:
        Key of a method, among those that are set -> trainers for which each of its values is legal.

    Raises:
        UserError: an unknown parent, an unknown key, a value that is not allowed or set in two ways.
    """
    refuse_unknown(place.plans, parent)
    refuse_overlap(values, grid, has_seeds, places)
    refuse_twice(grid, places.grid)
    inherited = inherited_block(place.configurations, parent)
    fixed = nested(values)
    varied = [nested({key: value}) for key, choices in grid.items() for value in choices]
    # the entries of an object (lambda) may be columns of the meta table, which is read only for them
    objects = any(isinstance(value, Mapping) for block in (inherited, fixed, *varied) for value in block.values())
    columns = label_columns(place) if objects else {}
    check_settings(inherited, f"the '{BLOCK}' block that configuration '{parent}' has in {place.path}", columns)
    legal = check_settings(fixed, places.set, columns, trainer)
    for block in varied:
        for key, names in check_settings(block, places.grid, columns, trainer).items():
            legal[key] = [name for name in legal.get(key, names) if name in names]
    return legal
