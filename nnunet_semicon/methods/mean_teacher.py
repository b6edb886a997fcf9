"""Mean Teacher (Tarvainen & Valpola, NeurIPS 2017).

    L = L_sup + w(t) * mean_pixels sum_c (p_c(strong view) - p~_c(weak view + noise))^2

p~: softmax of the teacher, the moving average of the student. w(t): exponential ramp from 0 to ``consistency_weight``.
``predict_with``: inference uses the student, or the teacher.

Deviations: the student sees the strong view (intensity transforms of the same voxels) instead of the clean image; the
ramp is a fraction of the run instead of a number of iterations.
"""

import torch
from torch import Tensor, nn

from nnunet_semicon.configuration.config import setting
from nnunet_semicon.configuration.derived import Derived
from nnunet_semicon.data.batch import TwoStreamBatch
from nnunet_semicon.losses.consistency import sigmoid_mse, softmax_mse
from nnunet_semicon.losses.schedules import ema_decay, sigmoid_rampup
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
from nnunet_semicon.methods.teacher import TeacherConfig
from nnunet_semicon.networks.ema import segmentation_teacher


class MeanTeacherConfig(TeacherConfig):
    """Hyper-parameters of Mean Teacher."""

    consistency_weight: float = setting(
        1.0,
        "final weight of the consistency term",
        low=0,
        source="ours, not tuned; SP-Con's authors searched 1e-4 to 10",
    )
    rampup: float = setting(
        0.4,
        "part of the run over which the weight grows",
        low=0.0,
        high=1.0,
        source="ours; SSL4MIS ramps over the whole run",
    )
    ema_decay: float = setting(0.99, "decay of the teacher's moving average", low=0, high=1, source="SSL4MIS")
    teacher_noise: float = setting(
        0.1, "standard deviation of the noise on the teacher's input, clipped at twice that", low=0, source="SSL4MIS"
    )


PAPER = {
    "optimizer": Derived("sgd", "SSL4MIS"),
    "learning_rate": Derived(1e-2, "SSL4MIS"),
    "weight_decay": Derived(1e-4, "SSL4MIS"),
    "consistency_weight": Derived(0.1, "SSL4MIS"),
    "rampup": Derived(1.0, "SSL4MIS: the whole run"),
    "ema_decay": Derived(0.99, "SSL4MIS"),
    "teacher_noise": Derived(0.1, "SSL4MIS"),
}


class MeanTeacher(Method):
    """The student learns to predict under strong intensity changes what its moving average predicts without them."""

    Config = MeanTeacherConfig
    needs = Needs(views=1, student_views=1)
    paper = PAPER
    cost = "a forward pass of the teacher on the unlabeled images"
    scalar_names = ("supervised", "consistency")

    def __init__(self, config: MeanTeacherConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        self.strong = build.strong
        self.teacher = segmentation_teacher(build.network)
        self.consistency = sigmoid_mse if build.has_regions else softmax_mse

    def networks(self) -> dict[str, nn.Module]:
        """Return the moving average of the student."""
        return {"teacher": self.teacher.module}

    def on_train_start(self, student_module: nn.Module) -> None:
        """The teacher starts as the student, pre-trained weights included."""
        self.teacher.copy_from(student_module)

    def compute(
        self, student: Student, batch: TwoStreamBatch, supervised_loss: SupervisedLoss, progress: Progress
    ) -> StepOutput:
        """L = L_sup + w(t) L_consistency."""
        n = batch.n_labeled
        output = student(torch.cat([batch.labeled, self.strong(batch.unlabeled)]))
        target = finest(self.teacher(with_noise(batch.unlabeled, self.config.teacher_noise)))

        supervised = supervised_loss(rows_of(output.logits, slice(0, n)), batch.target)
        consistency = self.consistency(finest(output.logits)[n:], target)
        weight = self.config.consistency_weight * sigmoid_rampup(progress.fraction, self.config.rampup)
        return StepOutput(
            supervised + weight * consistency,
            {"supervised": supervised.detach(), "consistency": consistency.detach()},
        )

    def after_step(
        self, student_module: nn.Module, batch: TwoStreamBatch, output: StepOutput, progress: Progress
    ) -> None:
        """Move the teacher."""
        self.teacher.update(student_module, ema_decay(progress.step, self.config.ema_decay))


def with_noise(image: Tensor, std: float) -> Tensor:
    """Add Gaussian noise of standard deviation ``std``, clipped at 2 ``std`` (SSL4MIS: 0.1 and 0.2)."""
    return image + (std * torch.randn_like(image)).clamp(-2 * std, 2 * std) if std > 0 else image
