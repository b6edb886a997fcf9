"""Supervised local contrast joined to the segmentation loss in one run (after Hu et al., MICCAI 2021).

    L = L_sup + lambda_local L_l + lambda_reg w(t) L_ST

L_l draws pixels of one class together in the decoder's feature space (:mod:`nnunet_semicon.losses.local_contrast`).
Classes are those of the labeled images; with ``pseudo_labels`` also those that the teacher, a moving average of the
student, is confident of on unlabeled images. L_ST: self-training, by default none
(:mod:`nnunet_semicon.methods.self_training`).

Deviations: the paper contrasts in a stage of its own, before the fine-tuning
(:mod:`nnunet_semicon.methods.supervised_local_pretrain`). They are listed in docs/methods/supervised_local.md.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from nnunet_semicon.configuration.config import setting
from nnunet_semicon.configuration.derived import Filled
from nnunet_semicon.configuration.facts import Facts
from nnunet_semicon.data.batch import TwoStreamBatch, pixel_classes
from nnunet_semicon.losses.pseudo_label import confident_prediction
from nnunet_semicon.losses.schedules import ema_decay
from nnunet_semicon.methods import local_term, self_training
from nnunet_semicon.methods.base import (
    BuildContext,
    Method,
    Needs,
    Progress,
    StepOutput,
    Student,
    SupervisedLoss,
    finest,
    rows_of,
)
from nnunet_semicon.methods.local_term import LOCAL_PAPER, LocalConfig, LocalTerm, with_taps
from nnunet_semicon.methods.self_training import Kind, SelfTraining, SelfTrainingConfig, rows_per_image, teacher_logits
from nnunet_semicon.networks.ema import segmentation_teacher


class SupervisedLocalConfig(LocalConfig, SelfTrainingConfig):
    """Hyper-parameters beside those of the contrast and of self-training."""

    self_training: Kind = setting("none", "how unlabeled images teach beside the contrast", source="paper: not at all")
    lambda_local: float = setting(0.1, "weight of the local contrast", low=0, source="ours, not tuned")
    pseudo_labels: bool = setting(
        False, "contrast pixels of unlabeled images too, by the teacher's confident classes", source="ours"
    )
    confidence: float = setting(
        0.9, "probability above which a class of the teacher counts", low=0, high=1, source="ours, not tuned"
    )
    ema_decay: float = setting(
        0.99, "decay of the teacher's moving average", low=0, high=1, source="as for Mean Teacher"
    )


class SupervisedLocal(Method):
    """Segmentation loss and local contrast of labeled pixels, with an option for unlabeled ones."""

    Config = SupervisedLocalConfig
    paper = LOCAL_PAPER
    cost = "the heads and the contrast; with pseudo_labels a forward pass of the teacher on the unlabeled images"

    def __init__(self, config: SupervisedLocalConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        self.strong = build.strong
        self.local = LocalTerm(config, build)
        self.self_training = SelfTraining.if_any(config, build)
        more = () if self.self_training is None else self.self_training.scalar_names
        self.scalar_names = ("supervised", "local", *more)
        has_teacher = config.pseudo_labels or self.self_training is not None or config.predicts_with_teacher
        self.teacher = segmentation_teacher(build.network) if has_teacher else None
        self.has_regions, self.ignore_label = build.has_regions, build.ignore_label

    @classmethod
    def needs_of(cls, config: SupervisedLocalConfig) -> Needs:
        """Unlabeled images are needed for pseudo-labels and self-training; maps follow from the levels."""
        views = config.pseudo_labels + rows_per_image(config)
        needs = replace(cls.needs, views=1, student_views=views) if views else cls.needs
        return with_taps(needs, config)

    @classmethod
    def derive(cls, config: SupervisedLocalConfig, facts: Facts) -> Filled[SupervisedLocalConfig]:
        """Fill in the pixels that meet, and what self-training leaves open."""
        filled = self_training.derive(config, facts)
        rows = facts.rows.labeled + facts.rows.images * config.pseudo_labels
        return filled.then(local_term.derive(filled.config, facts, rows))

    def networks(self) -> dict[str, nn.Module]:
        """Return the moving average of the student, if there is one."""
        return {} if self.teacher is None else {"teacher": self.teacher.module}

    def on_train_start(self, student_module: nn.Module) -> None:
        """The teacher starts as the student, pre-trained weights included."""
        if self.teacher is not None:
            self.teacher.copy_from(student_module)

    def compute(
        self, student: Student, batch: TwoStreamBatch, supervised_loss: SupervisedLoss, progress: Progress
    ) -> StepOutput:
        """L = L_sup + lambda_local L_l + lambda_reg w(t) L_ST."""
        classes = pixel_classes(batch.target, self.has_regions, self.ignore_label)
        images = batch.labeled
        if self.config.pseudo_labels:
            images = torch.cat([images, self.strong(batch.unlabeled)])
            classes = torch.cat([classes, self._pseudo_labels(batch.unlabeled)])
        contrasted, lesson = len(images), None
        if self.self_training is not None and self.teacher is not None:
            pseudo = teacher_logits(self.teacher, batch.unlabeled, self.has_regions, self.config.mirrored_teacher)
            lesson = self.self_training.lesson(batch, self.strong(batch.unlabeled), pseudo)
            images = torch.cat([images, lesson.images])
        output = student(images)
        supervised = supervised_loss(rows_of(output.logits, slice(0, batch.n_labeled)), batch.target)
        local = self.local({tap: maps[:contrasted] for tap, maps in output.features.items()}, classes)
        loss = supervised + self.config.lambda_local * local
        scalars = {"supervised": supervised.detach(), "local": local.detach()}
        if self.self_training is not None and lesson is not None:
            taught = rows_of(output.logits, slice(contrasted, None))
            term, more = self.self_training.loss(taught, lesson, supervised_loss, progress.fraction)
            loss, scalars = loss + term, {**scalars, **more}
        return StepOutput(loss, scalars)

    def after_step(
        self, student_module: nn.Module, batch: TwoStreamBatch, output: StepOutput, progress: Progress
    ) -> None:
        """Move the teacher; stop a run whose contrast has had no negatives for long."""
        self.local.negatives.stop_if_none(progress.step)
        if self.teacher is not None:
            self.teacher.update(student_module, ema_decay(progress.step, self.config.ema_decay))

    def _pseudo_labels(self, images: Tensor) -> Tensor:
        """Classes the teacher is confident of, -1 elsewhere; (B, C, *S) -> (B, *S)."""
        assert self.teacher is not None
        prediction, confident = confident_prediction(
            finest(self.teacher(images)), self.config.confidence, self.has_regions
        )
        return pixel_classes(prediction, self.has_regions, None).masked_fill(~confident, -1)
