"""Semicon: copy-paste self-training, the recommended way to use unlabeled scans.

    L = L_sup + lambda_reg w(t) L_ST                                       (:mod:`nnunet_semicon.methods.self_training`)

The student predicts, under strong intensity changes, the pseudo-labels of its moving average; boxes of labeled images
with their true labels are pasted into the unlabeled ones. Sources and choices: docs/methods/semicon.md.
"""

from dataclasses import replace

import torch
from torch import nn

from nnunet_semicon.configuration.derived import Filled
from nnunet_semicon.configuration.facts import Facts
from nnunet_semicon.data.batch import TwoStreamBatch
from nnunet_semicon.losses.schedules import ema_decay
from nnunet_semicon.methods import self_training
from nnunet_semicon.methods.base import (
    BuildContext,
    Method,
    Needs,
    Progress,
    StepOutput,
    Student,
    SupervisedLoss,
    rows_of,
)
from nnunet_semicon.methods.self_training import SelfTraining, SelfTrainingConfig, rows_per_image, teacher_logits
from nnunet_semicon.networks.ema import segmentation_teacher


class SemiconConfig(SelfTrainingConfig):
    """Hyper-parameters of self-training and of its teacher; there are no others."""


class Semicon(Method):
    """Supervised loss, and pseudo-labels of a moving average on images with pasted labeled content."""

    Config = SemiconConfig
    needs = Needs(views=1, student_views=1)
    cost = "a forward pass of the teacher on the unlabeled images"

    def __init__(self, config: SemiconConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        self.self_training = SelfTraining.if_any(config, build)
        more = () if self.self_training is None else self.self_training.scalar_names
        self.scalar_names = ("supervised", *more)
        self.teacher = segmentation_teacher(build.network)
        self.strong = build.strong
        self.has_regions = build.has_regions

    @classmethod
    def needs_of(cls, config: SemiconConfig) -> Needs:
        """Rows follow from the kind of self-training; without any, no unlabeled image is drawn."""
        rows = rows_per_image(config)
        return replace(cls.needs, views=min(1, rows), student_views=rows)

    @classmethod
    def derive(cls, config: SemiconConfig, facts: Facts) -> Filled[SemiconConfig]:
        """Fill in the teacher's decay and the share of CutMix."""
        return self_training.derive(config, facts)

    def networks(self) -> dict[str, nn.Module]:
        """Return the moving average of the student."""
        return {"teacher": self.teacher.module}

    def on_train_start(self, student_module: nn.Module) -> None:
        """The teacher starts as the student, pre-trained weights included."""
        self.teacher.copy_from(student_module)

    def compute(
        self, student: Student, batch: TwoStreamBatch, supervised_loss: SupervisedLoss, progress: Progress
    ) -> StepOutput:
        """L = L_sup + lambda_reg w(t) L_ST."""
        if self.self_training is None:
            supervised = supervised_loss(student(batch.labeled).logits, batch.target)
            return StepOutput(supervised, {"supervised": supervised.detach()})
        n = batch.n_labeled
        pseudo = teacher_logits(self.teacher, batch.unlabeled, self.has_regions, self.config.mirrored_teacher)
        lesson = self.self_training.lesson(batch, self.strong(batch.unlabeled), pseudo)
        logits = student(torch.cat([batch.labeled, lesson.images])).logits

        supervised = supervised_loss(rows_of(logits, slice(0, n)), batch.target)
        taught, scalars = self.self_training.loss(
            rows_of(logits, slice(n, None)), lesson, supervised_loss, progress.fraction
        )
        return StepOutput(supervised + taught, {"supervised": supervised.detach(), **scalars})

    def after_step(
        self, student_module: nn.Module, batch: TwoStreamBatch, output: StepOutput, progress: Progress
    ) -> None:
        """Move the teacher."""
        self.teacher.update(student_module, ema_decay(progress.step, self.config.ema_decay))
