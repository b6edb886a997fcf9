"""The supervised control: nnU-Net itself, driven through our loader and train_step.

Every comparison is made against it: same split, same plans, same number of iterations.
"""

from nnunet_semicon.configuration.config import Settings
from nnunet_semicon.data.batch import TwoStreamBatch
from nnunet_semicon.methods.base import Method, Progress, StepOutput, Student, SupervisedLoss


class SupervisedConfig(Settings):
    """The control has no hyper-parameter of its own."""


class Supervised(Method):
    """Labeled rows only, nnU-Net's own loss: bit for bit the stock trainer."""

    Config = SupervisedConfig
    cost = "nothing"

    def compute(
        self, student: Student, batch: TwoStreamBatch, supervised_loss: SupervisedLoss, progress: Progress
    ) -> StepOutput:
        """L = L_sup."""
        return StepOutput(supervised_loss(student(batch.image).logits, batch.target))
