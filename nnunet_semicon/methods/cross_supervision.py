"""Cross supervision: two networks, each taught by the other's predictions on unlabeled images.

    L = sum_x [ L_sup(x) + lambda_cross w(t) L_cps(x) ]

L_cps(x): cross-entropy or Dice of network x with the hard prediction of the other one, on unlabeled images. CPS (Chen
et al., CVPR 2021): two CNNs from different random weights, cross-entropy. Cross teaching (Luo et al., MIDL 2022): a CNN
and a Transformer, Dice. w(t): exponential ramp. Both networks see the same images. Inference uses the student, the
planned network; ``semicon export --network second`` gives the other one.

Deviations: listed in docs/methods/cross_supervision.md.
"""

from dataclasses import replace
from typing import Literal

from torch import nn
from torch.optim import Optimizer

from nnunet_semicon.configuration.config import setting
from nnunet_semicon.configuration.derived import Derived, Filled
from nnunet_semicon.configuration.facts import Facts
from nnunet_semicon.data.batch import TwoStreamBatch
from nnunet_semicon.losses.cross_supervision import cross_dice, cross_entropy
from nnunet_semicon.losses.schedules import sigmoid_rampup
from nnunet_semicon.methods.base import (
    BuildContext,
    Method,
    Needs,
    Progress,
    StepOutput,
    Student,
    SupervisedLoss,
)
from nnunet_semicon.methods.second_network import (
    BothLosses,
    SecondNetwork,
    SecondNetworkConfig,
    derive,
    losses_of_both,
)


class CrossSupervisionConfig(SecondNetworkConfig):
    """Hyper-parameters of cross supervision."""

    cross_loss: Literal["dice", "cross_entropy"] = setting(
        "dice",
        "how a network learns from the other's prediction",
        source="cross teaching: Dice; CPS: cross-entropy",
    )
    lambda_cross: float = setting(0.1, "final weight of the cross supervision", low=0, source="SSL4MIS")
    rampup: float = setting(
        1.0, "part of the run over which the weight grows", low=0, high=1, source="SSL4MIS: the whole run"
    )


PAPER = {
    "optimizer": Derived("sgd", "SSL4MIS"),
    "learning_rate": Derived(1e-2, "SSL4MIS"),
    "weight_decay": Derived(1e-4, "SSL4MIS"),
    "lambda_cross": Derived(0.1, "SSL4MIS"),
    "rampup": Derived(1.0, "SSL4MIS: the whole run"),
}


class CrossSupervision(Method):
    """Each network learns on unlabeled images what the other one predicts there."""

    Config = CrossSupervisionConfig
    needs = Needs(views=1, student_views=1)
    paper = PAPER
    cost = "the second network: its forward and backward pass, and its validation at the end"
    scalar_names = BothLosses._fields

    def __init__(self, config: CrossSupervisionConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        self.second = SecondNetwork(config, build)
        self.has_regions = build.has_regions
        self.cross_loss = cross_dice if config.cross_loss == "dice" else cross_entropy

    @classmethod
    def needs_of(cls, config: CrossSupervisionConfig) -> Needs:
        """The second network is a hyper-parameter."""
        return replace(cls.needs, second_network=config.second_network)

    @classmethod
    def derive(cls, config: CrossSupervisionConfig, facts: Facts) -> Filled[CrossSupervisionConfig]:
        """Fill in the learning rate of the second network."""
        return derive(config)

    def networks(self) -> dict[str, nn.Module]:
        """Return the network that the student learns from."""
        return {"second": self.second.network}

    def on_train_start(self, student_module: nn.Module) -> None:
        """The second network may start from trained weights."""
        self.second.on_train_start()

    def optimizers(self) -> list[Optimizer]:
        """Return the second network's optimizer."""
        return [self.second.optimizer()]

    def compute(
        self, student: Student, batch: TwoStreamBatch, supervised_loss: SupervisedLoss, progress: Progress
    ) -> StepOutput:
        """L = sum over both networks of L_sup + lambda_cross w(t) L_cps."""
        logits, second_logits = student(batch.image).logits, self.second(batch.image).logits
        both = losses_of_both(logits, second_logits, batch, supervised_loss, self.cross_loss, self.has_regions)
        weight = self.config.lambda_cross * sigmoid_rampup(progress.fraction, self.config.rampup)
        return StepOutput(both.total(weight), both.scalars())
