"""Self-training: the moving average of the student gives pseudo-labels that the student learns from.

    y, c = argmax and maximum of the teacher's probabilities on the unlabeled image
    L_ST = lambda_reg w(t) L_sup(student(x), target, weight)

    copy_paste  x: the strong view; in most images a box of it is replaced by the same place of a labeled image, or all
                but that box. target: the true label there, y elsewhere. weight: 1 there, [c >= threshold] elsewhere.
    match       the same without labeled content (FixMatch); boxes are exchanged between unlabeled images (CutMix).

With ``mean_teacher`` or ``cross_entropy`` the student learns the teacher's probabilities on the strong view instead.
w(t): exponential ramp. L_sup: nnU-Net's loss, over all scales of deep supervision. After FixMatch (Sohn et al. 2020),
BCP (Bai et al. 2023) and UniMatch (Yang et al. 2023); any joint method can add this term.
"""

from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from nnunet_semicon.configuration.config import open_setting, setting
from nnunet_semicon.configuration.derived import Derived, Filled
from nnunet_semicon.configuration.facts import Facts
from nnunet_semicon.data.batch import TwoStreamBatch, pixel_classes
from nnunet_semicon.losses.consistency import (
    sigmoid_cross_entropy,
    sigmoid_mse,
    softmax_cross_entropy,
    softmax_mse,
)
from nnunet_semicon.losses.pseudo_label import counting, kept_shares, prediction
from nnunet_semicon.losses.schedules import sigmoid_rampup
from nnunet_semicon.methods.base import BuildContext, Logits, SupervisedLoss, finest
from nnunet_semicon.methods.copy_paste import (
    PasteConfig,
    Targets,
    as_target,
    boxes,
    joined,
    labeled_targets,
    partners,
    paste,
    refuse_impossible_boxes,
)
from nnunet_semicon.methods.teacher import TeacherConfig

FEW_STEPS = 5000  # a run of at most so many has no time for a slow teacher
SOFT_LOSSES = {  # kind, regions -> loss
    ("mean_teacher", False): softmax_mse,
    ("mean_teacher", True): sigmoid_mse,
    ("cross_entropy", False): softmax_cross_entropy,
    ("cross_entropy", True): sigmoid_cross_entropy,
}

Kind = Literal["copy_paste", "match", "mean_teacher", "cross_entropy", "none"]


class SelfTrainingConfig(TeacherConfig, PasteConfig):
    """Hyper-parameters of self-training and of its teacher."""

    self_training: Kind = setting(
        "copy_paste",
        "how unlabeled images teach: pseudo-labels with or without labeled content, or soft targets",
        source="BCP, FixMatch, Mean Teacher, PLGCL",
    )
    lambda_reg: float = setting(1.0, "final weight of self-training", low=0, source="ours")
    rampup: float = setting(0.3, "part of the run over which that weight grows", low=0, high=1, source="ours")
    threshold: float = setting(
        0.8, "probability from which a pseudo-label counts", low=0, high=1, source="ours; FixMatch and UniMatch 0.95"
    )
    min_kept: float = setting(
        0.0,
        "smallest part of the pseudo-labels of each class that count: lowers the threshold of a class that needs it",
        low=0,
        high=1,
        source="ours",
    )
    cutmix_probability: float = open_setting(
        "part of the images that get a box of another unlabeled image; null: derived", low=0, high=1
    )
    paste_both: bool = setting(
        False, "each pasted image, and its counterpart with the same box exchanged", source="BCP: true"
    )
    deep_pseudo_labels: bool = setting(
        True, "pseudo-labels teach all scales of deep supervision, not the finest alone", source="nnU-Net"
    )
    mirrored_teacher: bool = setting(False, "pseudo-labels are averages over mirrored images", source="ours")
    ema_decay: float = open_setting("decay of the teacher's moving average; null: derived", low=0, high=1)


C = TypeVar("C", bound=SelfTrainingConfig)


def derive(config: C, facts: Facts) -> Filled[C]:
    """Fill in the teacher's decay and the share of CutMix.

    Raises:
        UserError: the smallest box is larger than the largest.
    """
    refuse_impossible_boxes(config)
    if facts.steps <= FEW_STEPS:
        decay = Derived(0.99, f"{facts.steps} steps are at most {FEW_STEPS}")
    else:
        decay = Derived(0.999, f"{facts.steps} steps are more than {FEW_STEPS}")
    is_match = config.self_training == "match"
    cutmix = Derived(0.5 if is_match else 0.0, "half with match" if is_match else "labeled content is pasted instead")
    return Filled(config).fill(ema_decay=decay, cutmix_probability=cutmix)


def is_soft(config: SelfTrainingConfig) -> bool:
    """Whether the student learns the teacher's probabilities instead of pseudo-labels."""
    return config.self_training in {kind for kind, _ in SOFT_LOSSES}


def rows_per_image(config: SelfTrainingConfig) -> int:
    """Return how many images the student sees for each unlabeled one."""
    if config.self_training == "none" or config.lambda_reg == 0:
        return 0
    return 2 if config.self_training == "copy_paste" and config.paste_both else 1


@dataclass(frozen=True)
class Lesson:
    """Changed unlabeled images, and what the student is to predict there.

    Attributes:
        images: (B, C, *S), strong views, mixed where targets are hard.
        target: hard: (B, 1, *S) labels or (B, R, *S) bool regions; soft: (B, K, *S) logits of the teacher.
        weight: (B, *S) in [0, 1]; None: targets are soft.
        kept: (K,) part of the pseudo-labels of each class or region that count; None: targets are soft.
    """

    images: Tensor
    target: Tensor
    weight: Tensor | None = None
    kept: Tensor | None = None


class SelfTraining:
    """The term. Its owner has the teacher, and puts the images of a lesson into the student's batch.

    Args:
        config: the hyper-parameters, filled; ``self_training`` is not ``none``.
        build: see :class:`~nnunet_semicon.methods.base.BuildContext`.

    Attributes:
        is_soft: the student learns probabilities on unmixed strong views.
        scalar_names: names of the scalars that :meth:`loss` returns.
    """

    def __init__(self, config: SelfTrainingConfig, build: BuildContext) -> None:
        self.config = config
        self.has_regions, self.n_heads = build.has_regions, build.n_heads
        self.soft_loss = SOFT_LOSSES.get((config.self_training, build.has_regions))
        self.is_soft = self.soft_loss is not None
        kept = [] if self.is_soft else [f"kept_{number}" for number in range(build.n_heads)]
        self.scalar_names = ("self_training", *kept)

    @classmethod
    def if_any(cls, config: SelfTrainingConfig, build: BuildContext) -> "SelfTraining | None":
        """Return the term, or None where ``self_training`` is ``none`` or has no weight."""
        return cls(config, build) if config.self_training != "none" and config.lambda_reg > 0 else None

    def lesson(self, batch: TwoStreamBatch, strong: Tensor, teacher_logits: Tensor) -> Lesson:
        """Return the images and targets of one step.

        Args:
            batch: labeled images give the content that is pasted.
            strong: (B_u, C, *S) strong views of the unlabeled images.
            teacher_logits: (B_u, K, *S) on these images without changes.
        """
        if self.is_soft:
            return Lesson(strong, teacher_logits)
        predicted, probability = prediction(teacher_logits, self.has_regions)
        classes = pixel_classes(predicted, self.has_regions, None)
        counts = counting(probability, classes, self.config.threshold, self.config.min_kept)
        labeled = labeled_targets(batch)
        mixed = self._mixed(Targets(strong, as_target(predicted, labeled.target), counts.float()), labeled)
        return Lesson(
            mixed.images, mixed.target, mixed.weight, kept_shares(counts, predicted, self.n_heads, self.has_regions)
        )

    def loss(
        self, logits: Logits, lesson: Lesson, supervised_loss: SupervisedLoss, fraction: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return lambda_reg w(t) L_ST, (), and the scalars: L_ST, and the kept part of each class.

        Args:
            logits: of the student on the images of the lesson.
            lesson: see :meth:`lesson`.
            supervised_loss: nnU-Net's.
            fraction: t, the part of the run since the ramp began, in [0, 1].
        """
        scalars: dict[str, Tensor] = {}
        if self.soft_loss is not None:
            loss = self.soft_loss(finest(logits), lesson.target)
        else:
            taught = logits if self.config.deep_pseudo_labels else finest(logits)
            loss = supervised_loss(taught, lesson.target, lesson.weight)
        if lesson.kept is not None:
            scalars = {f"kept_{number}": share for number, share in enumerate(lesson.kept)}
        weight = self.config.lambda_reg * sigmoid_rampup(fraction, self.config.rampup)
        return weight * loss, {"self_training": loss.detach(), **scalars}

    def _mixed(self, unlabeled: Targets, labeled: Targets) -> Targets:
        """Exchange boxes among unlabeled images, then between them and labeled ones."""
        config, count, size = self.config, len(unlabeled.images), tuple(unlabeled.images.shape[2:])
        if config.cutmix_probability > 0:
            masks = boxes(config, count, size, config.cutmix_probability)
            unlabeled = paste(unlabeled, unlabeled[torch.randperm(count)], masks)
        if config.self_training != "copy_paste":
            return unlabeled
        masks = boxes(config, count, size, config.paste_probability)
        other = labeled[partners(count, len(labeled.images))]
        mixed = paste(unlabeled, other, masks)
        return joined(mixed, paste(other, unlabeled, masks)) if config.paste_both else mixed


def teacher_logits(teacher: nn.Module, images: Tensor, has_regions: bool, mirrored: bool) -> Tensor:
    """Return the teacher's logits at full resolution, (B, K, *S).

    Args:
        teacher: gives logits without a gradient.
        images: (B, C, *S).
        has_regions: sigmoid instead of softmax.
        mirrored: average the probabilities over all mirrored images.
    """
    if not mirrored:
        return finest(teacher(images))
    axes = range(2, images.ndim)
    flips = [flip for count in range(len(axes) + 1) for flip in combinations(axes, count)]
    nonlinearity = torch.sigmoid if has_regions else partial(torch.softmax, dim=1)
    mean = torch.stack([nonlinearity(finest(teacher(images.flip(flip)))).flip(flip) for flip in flips]).mean(dim=0)
    return torch.logit(mean, eps=1e-6) if has_regions else mean.clamp_min(1e-6).log()
