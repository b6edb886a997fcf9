"""The supervised Transformer: a shifted-window U-Net in the place of the planned network, on labeled scans alone.

    L = L_sup

What the tables compare the Transformer of other methods with (MCSC, Liu et al., BMVC 2023, trains one beside the CNN).
"""

from nnunet_semicon.configuration.config import Settings, setting
from nnunet_semicon.configuration.derived import Derived
from nnunet_semicon.data.batch import TwoStreamBatch
from nnunet_semicon.methods.base import Method, Progress, StepOutput, Student, SupervisedLoss


class SupervisedSwinConfig(Settings):
    """Hyper-parameters of the Transformer's training."""

    swin_weights: str | None = setting(
        None,
        "file with the weights of timm's swin_tiny_patch4_window7_224 to start from (set learning_rate=0.0001 then); "
        "null: random",
    )


DEFAULTS = {
    "optimizer": Derived("adamw", "MCSC's code"),
    "learning_rate": Derived(1e-3, "ours, for random weights; MCSC's code: 0.0001 from ImageNet's"),
    "warmup": Derived(0.05, "MCSC's code"),
    "weight_decay": Derived(5e-4, "MCSC's code"),
}


class SupervisedSwin(Method):
    """Labeled rows only, nnU-Net's own loss at full resolution."""

    Config = SupervisedSwinConfig
    defaults = DEFAULTS
    cost = "another network: attention in windows instead of convolutions"

    def compute(
        self, student: Student, batch: TwoStreamBatch, supervised_loss: SupervisedLoss, progress: Progress
    ) -> StepOutput:
        """L = L_sup."""
        return StepOutput(supervised_loss(student(batch.image).logits, batch.target))
