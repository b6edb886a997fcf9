"""What the rules of a method may look at."""

from collections.abc import Mapping
from dataclasses import dataclass

from nnunet_semicon.configuration.cost import NetworkCost
from nnunet_semicon.configuration.rules import RowPlan

# fewer embeddings than this in a step leave too few negatives: contrast is then against a queue as well
FEW_EMBEDDINGS = 16


@dataclass(frozen=True)
class Facts:
    """What a method's own rules may look at.

    Attributes:
        partitions: S, or None where there is no position label.
        labels: meta-labels that the data carries, position first.
        unusable: meta-label -> why the data does not carry it.
        rows: how the rows of a step are spent, all ranks together: no rule may depend on the number of ranks.
        network: cost and sizes of the planned network, one row.
        steps: training steps of the run.
    """

    partitions: int | None
    labels: tuple[str, ...]
    unusable: Mapping[str, str]
    rows: RowPlan
    network: NetworkCost
    steps: int
