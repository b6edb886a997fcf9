"""The contract between a method and the trainer that owns it.

A method is an ``nn.Module``: heads, teachers, second networks and queues are its sub-modules or buffers. It knows
nothing of mixed precision, clipping, devices, ranks or files; the trainer knows no formula.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from nnunet_semicon.configuration.config import Settings
from nnunet_semicon.configuration.derived import Derived, Filled
from nnunet_semicon.configuration.facts import Facts
from nnunet_semicon.configuration.needs import Needs
from nnunet_semicon.data.batch import TwoStreamBatch

Logits = Tensor | list[Tensor]


class SupervisedLoss(Protocol):
    """nnU-Net's loss, for ground truth and for pseudo-labels."""

    def __call__(self, logits: Logits, target: Tensor | list[Tensor], weight: Tensor | None = None) -> Tensor:
        """Return the loss, (); nnU-Net's own where there is no weight.

        Args:
            logits: (B, K, *S) at full resolution, which is then compared alone; or a list over deep-supervision scales.
            target: (B, 1, *S) classes, or (B, K, *S) regions and, with an ignore label, a last channel of ignored
                pixels. A list over scales, the finest first; or the finest alone, then it is resized to every scale.
            weight: (B, *S) in [0, 1] at full resolution; resized like the target. In the cross-entropy the sum of
                weighted pixels is divided by the number of pixels that are not ignored. In Dice, weights multiply the
                intersection and both sums.

        Raises:
            UserError: with a weight, where the trainer's loss is not nnU-Net's Dice and cross-entropy.
        """


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
        has_regions: sigmoid heads instead of softmax.
        n_heads: classes, background included, or regions.
        ignore_label: value of the target that marks pixels to be ignored, or None.
        tap_channels: tap -> channels of its features.
        spatial_dims: 2 or 3.
        gather: maps the rows (B, ...) of this rank to those of all ranks, in the same order on every rank. A loss over
            all rows gets the gradient that one process with all rows would compute; with one rank it does nothing.
        new_network: kind -> another network for the same images and classes, with random weights.
        strong: makes strong views of images (B, C, *S), a new tensor without gradient. Intensities change, no voxel
            moves; every call draws other changes (:mod:`nnunet_semicon.data.strong`).
    """

    network: nn.Module
    facts: Facts
    has_regions: bool
    n_heads: int
    ignore_label: int | None
    tap_channels: Mapping[str, int]
    spatial_dims: int
    gather: Callable[[Tensor], Tensor]
    new_network: Callable[[str], nn.Module]
    strong: Callable[[Tensor], Tensor]


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
        for_after_step: tensors that ``after_step`` needs again (detached).
    """

    loss: Tensor
    scalars: Mapping[str, Tensor] = field(default_factory=dict)
    for_after_step: Mapping[str, Tensor] = field(default_factory=dict)


class Student(Protocol):
    """The network that is trained, as a method sees it."""

    def __call__(self, images: Tensor, perturb: Tensor | None = None) -> StudentOutput:
        """Run the network with a gradient: once per step, on one concatenated batch.

        Args:
            images: (B, C, *S).
            perturb: (B,) bool, rows whose features lose half of their channels (``Needs(perturb=True)``).
        """
        ...

    def no_grad(self, images: Tensor) -> Tensor:
        """Return the finest logits (B, K, *S) without a gradient, in evaluation mode."""
        ...


Encode = Callable[[Tensor], StudentOutput]


class Method(nn.Module):
    """A method. Subclasses define ``Config``, ``needs``, ``cost``, ``scalar_names`` and :meth:`compute`.

    Args:
        config: an instance of ``Config`` whose open values are filled.
        build: see :class:`BuildContext`.

    Attributes:
        defaults: settings of the run -> value that this method has in the place of nnU-Net's, and its source.
        paper: key -> value of ``preset=paper``: as printed, or as in the authors' code where nothing is printed.
        cost: what a step costs beyond the rows of the student, in words.
        scalar_names: the keys of ``StepOutput.scalars``.
        show: what :meth:`snapshot` shows; None: nothing.
    """

    Config: ClassVar[type[Settings]]
    needs: ClassVar[Needs] = Needs()
    defaults: ClassVar[Mapping[str, Derived]] = {}
    paper: ClassVar[Mapping[str, Derived]] = {}
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
    def derive(cls, config: Any, facts: Facts) -> Filled[Any]:
        """Return the config with its open values filled, and the reasons; a pure function."""
        return Filled(config)

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
        self, encode: Encode, images: Tensor, meta: Mapping[str, Tensor], fraction: float
    ) -> Mapping[str, Tensor]:
        """Return arrays that show what the method does with a few fixed images; called at a few moments of the run.

        Args:
            encode: runs the student's encoder; its features, not its logits, are returned.
            images: (N, C, *S).
            meta: meta-label -> (N,) codes.
            fraction: finished part of the run.
        """
        raise NotImplementedError

    def networks(self) -> dict[str, nn.Module]:
        """Return the networks that segment like the student and can be exported: ``teacher``, ``second``.

        ``second``, a network that trains beside the student, is validated too.
        """
        return {}

    def optimizers(self) -> list[Optimizer]:
        """Optimizers of parameters that do not belong into nnU-Net's own one."""
        return []


class PretrainMethod(Method):
    """A method that segments nothing yet, with the optimizer of SP-Con's pre-training."""

    defaults: ClassVar[Mapping[str, Derived]] = {
        "optimizer": Derived("radam", "SP-Con's code"),
        "learning_rate": Derived(2e-4, "SP-Con's code; the supplement prints 100 times that"),
        "lr_schedule": Derived("cosine", "supplement, Fig. 5"),
        "warmup": Derived(0.1, "supplement, Fig. 5"),
        "weight_decay": Derived(1e-5, "SP-Con's code"),
    }

    def validate(self, student: Encode, batch: TwoStreamBatch) -> Mapping[str, Tensor]:
        """Return name -> () of one batch of validation images; ``loss`` among them, lower is better."""
        raise NotImplementedError


def rows_of(logits: Logits, rows: slice) -> Logits:
    """Return the given rows of every deep-supervision scale."""
    return [scale[rows] for scale in logits] if isinstance(logits, list | tuple) else logits[rows]


def finest(logits: Logits) -> Tensor:
    """Return the logits at full resolution, (B, K, *S)."""
    return logits[0] if isinstance(logits, list | tuple) else logits
