"""The supervised Transformer: a shifted-window U-Net in the place of the planned network, on labeled scans alone.

    L = L_sup

What the tables compare the Transformer of other methods with (MCSC, Liu et al., BMVC 2023, trains one beside the CNN).
"""

from dataclasses import dataclass

from nnunet_semicon.configuration.config import setting
from nnunet_semicon.data.batch import TwoStreamBatch
from nnunet_semicon.methods.base import Method, Progress, StepOutput, Student, SupervisedLoss


@dataclass(frozen=True)
class SupervisedSwinConfig:
    """Hyper-parameters of the Transformer's training."""

    learning_rate: float = setting(
        1e-3,
        "largest learning rate (AdamW)",
        low=0,
        source="ours, for random weights; MCSC's code: 0.0001 from ImageNet's",
    )
    weight_decay: float = setting(5e-4, "weight decay of the optimizer", low=0, source="MCSC's code")
    warmup: float = setting(
        0.05, "part of the run over which the learning rate grows", low=0, high=1, source="MCSC's code"
    )
    swin_weights: str | None = setting(
        None,
        "file with the weights of timm's swin_tiny_patch4_window7_224 to start from (set learning_rate=0.0001 then); "
        "null: random",
        source="",
    )


class SupervisedSwin(Method):
    """Labeled rows only, nnU-Net's own loss at full resolution."""

    Config = SupervisedSwinConfig
    cost = "another network: attention in windows instead of convolutions"

    def compute(
        self, student: Student, batch: TwoStreamBatch, supervised_loss: SupervisedLoss, progress: Progress
    ) -> StepOutput:
        """L = L_sup."""
        return StepOutput(supervised_loss(student(batch.image).logits, batch.target))
