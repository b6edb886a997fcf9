"""The contract between a method and the trainer that owns it.

A method is an ``nn.Module``: heads, teachers, second networks and queues are its sub-modules or buffers. It knows
nothing of mixed precision, clipping, devices, ranks or files; the trainer knows no formula.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from nnunet_semicon.configuration.config import setting
from nnunet_semicon.configuration.rules import Derived, Facts, Stage
from nnunet_semicon.data.batch import TwoStreamBatch

Logits = Tensor | list[Tensor]
SupervisedLoss = Callable[[Logits, Tensor | list[Tensor]], Tensor]


@dataclass(frozen=True)
class Needs:
    """What a method asks of the trainer.

    Attributes:
        views: views the loader makes of each unlabeled image (0: the method uses none).
        student_views: rows of the student's forward pass per unlabeled image.
        labeled_views: rows of the student's forward pass per labeled image.
        shared_geometry: all views show the same voxels.
        weak_view: view 0 keeps its intensities, for a teacher or for pseudo-labels.
        draw_all: the unlabeled stream draws from the labeled training cases too (never their labels).
        sample_scans: draw scans x partitions instead of single images.
        meta: the method reads ``batch.meta``.
        taps: places whose features the student returns (:mod:`nnunet_semicon.networks.taps`).
        stage: ``joint`` with the supervised loss, or ``pretrain`` before it.
        second_network: kind of the network that trains beside the student on every row; None: there is none.
    """

    views: int = 0
    student_views: int = 0
    labeled_views: int = 1
    shared_geometry: bool = True
    weak_view: bool = True
    draw_all: bool = False
    sample_scans: bool = False
    meta: bool = False
    taps: tuple[str, ...] = ()
    stage: Stage = "joint"
    second_network: str | None = None


@dataclass(frozen=True)
class Show:
    """What a method shows of itself in the course of a run.

    Attributes:
        name: of its files and of the function that draws them (:mod:`nnunet_semicon.training.snapshots`).
        cases: scans of the unlabeled stream, of different patients if there are enough.
        per_case: images of each scan.
        moments: finished parts of the run.
    """

    name: str
    cases: int
    per_case: int
    moments: tuple[float, ...]


@dataclass(frozen=True)
class BuildContext:
    """What a method may know when it is built.

    Attributes:
        network: the plain student (neither compiled nor wrapped); build teachers from it at once.
        facts: what the plans and the data say: rows of a step, partitions, meta-labels.
        derived: what :meth:`Method.derive` returned.
        has_regions: sigmoid heads instead of softmax.
        n_heads: classes, background included, or regions.
        ignore_label: value of the target that marks pixels to be ignored, or None.
        tap_channels: tap -> channels of its features.
        spatial_dims: 2 or 3.
        gather: maps the rows (B, ...) of this rank to those of all ranks, in the same order on every rank. A loss over
            all rows gets the gradient that one process with all rows would compute; with one rank it does nothing.
        new_network: kind -> another network for the same images and classes, with random weights.
    """

    network: nn.Module
    facts: Facts
    derived: Mapping[str, Derived]
    has_regions: bool
    n_heads: int
    ignore_label: int | None
    tap_channels: Mapping[str, int]
    spatial_dims: int
    gather: Callable[[Tensor], Tensor]
    new_network: Callable[[str], nn.Module]


@dataclass(frozen=True)
class Progress:
    """Where the run is: ``step`` in [0, ``total``)."""

    step: int
    total: int

    @property
    def fraction(self) -> float:
        """Finished part of the run in [0, 1)."""
        return self.step / self.total


@dataclass(frozen=True)
class StudentOutput:
    """One forward pass of the student.

    Attributes:
        logits: (B, K, *S), or a list of them over deep-supervision scales, the finest first; empty where only the
            encoder runs (pre-training).
        features: tap -> (B, C, *s).
    """

    logits: Logits
    features: Mapping[str, Tensor]


@dataclass(frozen=True)
class StepOutput:
    """What a method computes in one step.

    Attributes:
        loss: () the total loss to differentiate.
        scalars: name -> () detached, for the curves.
        carry: tensors that ``after_step`` needs again (detached).
    """

    loss: Tensor
    scalars: Mapping[str, Tensor] = field(default_factory=dict)
    carry: Mapping[str, Tensor] = field(default_factory=dict)


Student = Callable[[Tensor], StudentOutput]


class Method(nn.Module):
    """A method. Subclasses define ``Config``, ``needs``, ``cost``, ``scalar_names`` and :meth:`compute`.

    Args:
        config: an instance of ``Config``.
        build: see :class:`BuildContext`.

    Attributes:
        cost: what a step costs beyond the rows of the student, in words.
        scalar_names: the keys of ``StepOutput.scalars``.
        show: what :meth:`snapshot` shows; None: nothing.
    """

    Config: ClassVar[type[Any]]
    needs: ClassVar[Needs] = Needs()
    cost: ClassVar[str]
    scalar_names: tuple[str, ...] = ()
    show: Show | None = None

    def __init__(self, config: Any, build: BuildContext) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def needs_of(cls, config: Any) -> Needs:
        """Return what the method asks of the trainer with these hyper-parameters; a pure function."""
        return cls.needs

    @classmethod
    def derive(cls, config: Any, facts: Facts) -> dict[str, Derived]:
        """Return hyper-parameter -> value and reason for what ``config`` leaves open; a pure function."""
        return {}

    def on_train_start(self, student_module: nn.Module) -> None:
        """Called before the first step of a new (not resumed) run: copy the student into every teacher."""

    def compute(
        self, student: Student, batch: TwoStreamBatch, supervised_loss: SupervisedLoss, progress: Progress
    ) -> StepOutput:
        """Return the loss of one step; the student is called exactly once, on one concatenated batch."""
        raise NotImplementedError

    def after_step(
        self, student_module: nn.Module, batch: TwoStreamBatch, output: StepOutput, progress: Progress
    ) -> None:
        """Called after the optimizer step: moving averages, queues, a discriminator's own step."""

    def snapshot(
        self, encode: Student, images: Tensor, meta: Mapping[str, Tensor], fraction: float
    ) -> Mapping[str, Tensor]:
        """Return arrays that show what the method does with a few fixed images; called at a few moments of the run.

        Args:
            encode: runs the student's encoder; its features, not its logits, are returned.
            images: (N, C, *S).
            meta: meta-label -> (N,) codes.
            fraction: finished part of the run.
        """
        raise NotImplementedError

    def second_network(self) -> nn.Module | None:
        """Return the network that segments beside the student, if there is one: it is validated and can be exported."""
        return None

    def optimizers(self) -> list[Optimizer]:
        """Optimizers of parameters that do not belong into nnU-Net's own one."""
        return []


@dataclass(frozen=True)
class PretrainConfig:
    """Optimizer and schedule of a pre-training: RAdam, linear warm-up, cosine (SP-Con supplement, Fig. 5)."""

    optimizer: str = setting(
        "radam", "optimizer of the pre-training", choices=("radam", "adam"), source="SP-Con's code"
    )
    learning_rate: float = setting(
        2e-4, "largest learning rate", low=0, source="SP-Con's code; the supplement prints 100 times that"
    )
    warmup: float = setting(
        0.1, "part of the run over which the learning rate grows", low=0, high=1, source="supplement, Fig. 5"
    )
    weight_decay: float = setting(1e-5, "weight decay of the optimizer", low=0, source="SP-Con's code")


class PretrainMethod(Method):
    """A method that segments nothing yet; ``Config`` is a :class:`PretrainConfig`."""

    def validate(self, student: Student, batch: TwoStreamBatch) -> Mapping[str, Tensor]:
        """Return name -> () of one batch of validation images; ``loss`` among them, lower is better."""
        raise NotImplementedError


def rows_of(logits: Logits, rows: slice) -> Logits:
    """Return the given rows of every deep-supervision scale."""
    return [scale[rows] for scale in logits] if isinstance(logits, list | tuple) else logits[rows]


def finest(logits: Logits) -> Tensor:
    """Return the logits at full resolution, (B, K, *S)."""
    return logits[0] if isinstance(logits, list | tuple) else logits
