"""The supervised control: nnU-Net itself, driven through our loader and train_step.

Every comparison is made against it: same split, same plans, same number of iterations.
"""

from torch import nn

from nnunet_semicon.data.batch import TwoStreamBatch
from nnunet_semicon.losses.schedules import ema_decay
from nnunet_semicon.methods.base import BuildContext, Method, Progress, StepOutput, Student, SupervisedLoss
from nnunet_semicon.methods.teacher import TeacherConfig
from nnunet_semicon.networks.ema import segmentation_teacher


class SupervisedConfig(TeacherConfig):
    """The control alone has no teacher unless it predicts."""


class Supervised(Method):
    """Labeled rows only, nnU-Net's own loss: bit for bit the stock trainer, and its moving average if that predicts."""

    Config = SupervisedConfig
    cost = "nothing"

    def __init__(self, config: SupervisedConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        self.teacher = segmentation_teacher(build.network) if config.predicts_with_teacher else None

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
        """L = L_sup."""
        return StepOutput(supervised_loss(student(batch.image).logits, batch.target))

    def after_step(
        self, student_module: nn.Module, batch: TwoStreamBatch, output: StepOutput, progress: Progress
    ) -> None:
        """Move the teacher."""
        if self.teacher is not None:
            self.teacher.update(student_module, ema_decay(progress.step, self.config.ema_decay))
