"""MCSC: a CNN and a Transformer teach each other, and contrast their pixels at several scales (Liu et al., BMVC 2023).

    L_x = L_sup(x) + lambda_cross w(t) L_cps(x) + lambda_contrast L_cl,    L = L_cnn + L_tra

L_cps(x): Dice of network x with the hard prediction of the other. L_cl: contrast of the pixels of both networks
(:mod:`nnunet_semicon.methods.scale_term`); a pixel's class is its label, or, on unlabeled rows, what the *other*
network predicts there. w(t): exponential ramp. Inference uses the student, the planned network; ``semicon export
--network second`` gives the Transformer.

Deviations: listed in docs/methods/mcsc.md.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nnunet_semicon.configuration.config import setting
from nnunet_semicon.configuration.derived import Derived, Filled
from nnunet_semicon.configuration.facts import Facts
from nnunet_semicon.data.batch import TwoStreamBatch, pixel_classes
from nnunet_semicon.losses.cross_supervision import cross_dice, hard_prediction
from nnunet_semicon.losses.schedules import sigmoid_rampup
from nnunet_semicon.methods import scale_term, second_network
from nnunet_semicon.methods.base import (
    BuildContext,
    Logits,
    Method,
    Needs,
    Progress,
    StepOutput,
    Student,
    SupervisedLoss,
    finest,
)
from nnunet_semicon.methods.scale_term import ScaleConfig, ScaleTerm, scales_of, taps_of
from nnunet_semicon.methods.second_network import BothLosses, SecondNetwork, SecondNetworkConfig, losses_of_both


class MCSCConfig(ScaleConfig, SecondNetworkConfig):
    """Hyper-parameters beside those of the contrast and of the second network."""

    lambda_cross: float = setting(0.1, "final weight of the cross supervision", low=0, source="MCSC's code")
    rampup: float = setting(
        0.75, "part of the run over which that weight grows", low=0, high=1, source="MCSC's code: 30000 of 40000 steps"
    )
    contrast_start: float = setting(
        0.075,
        "part of the run in which only labeled images are contrasted",
        low=0,
        high=1,
        source="MCSC's code: 3000 of 40000 steps",
    )
    cross_labels: bool = setting(
        True, "class of an unlabeled pixel: what the other network predicts; otherwise the own", source="poster"
    )


PAPER = {
    "optimizer": Derived("adamw", "MCSC's code"),
    "learning_rate": Derived(5e-4, "MCSC's script"),
    "weight_decay": Derived(5e-4, "MCSC's code"),
    "second_learning_rate": Derived(1e-4, "MCSC's script"),
    "projector_learning_rate": Derived(5e-4, "MCSC's code"),
    "lambda_cross": Derived(0.1, "MCSC's code"),
    "rampup": Derived(0.75, "MCSC's code: 30000 of 40000 steps"),
    "lambda_contrast": Derived(0.001, "MCSC's code"),
    "contrast_start": Derived(0.075, "MCSC's code: 3000 of 40000 steps"),
    "scales": Derived({"1": 1.0, "1/4": 0.0, "1/8": 1.0}, "poster, Tab. A2: the best pair"),
    "pixels": Derived("block", "MCSC's code"),
    "block_size": Derived(19, "MCSC's code, at full resolution"),
    "temperature": Derived(0.1, "MCSC's code"),
    "embedding_dim": Derived(128, "MCSC's code"),
    "balanced": Derived(True, "poster"),
    "background_anchors": Derived(True, "MCSC's code"),
    "cross_labels": Derived(True, "poster"),
}


class MCSC(Method):
    """Cross teaching of two networks, and contrast of their pixels by labels and by each other's predictions."""

    Config = MCSCConfig
    needs = Needs(views=1, student_views=1)
    paper = PAPER
    cost = "the second network with its validation at the end, the projectors and the contrast"

    def __init__(self, config: MCSCConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        self.second = SecondNetwork(config, build, taps_of(config))
        self.contrast = ScaleTerm(config, build, self.second.network) if scales_of(config) else None
        self.has_regions, self.ignore_label = build.has_regions, build.ignore_label
        self.scalar_names = (*BothLosses._fields, *["contrast"] * (self.contrast is not None))

    @classmethod
    def needs_of(cls, config: MCSCConfig) -> Needs:
        """The maps follow from the scales, the second network is a hyper-parameter."""
        return replace(cls.needs, taps=taps_of(config), second_network=config.second_network)

    @classmethod
    def derive(cls, config: MCSCConfig, facts: Facts) -> Filled[MCSCConfig]:
        """Fill in the learning rate of the second network, and the pixels that meet at each scale."""
        filled = second_network.derive(config)
        return filled.then(scale_term.derive(filled.config, facts))

    def networks(self) -> dict[str, nn.Module]:
        """Return the network that the student learns from."""
        return {"second": self.second.network}

    def on_train_start(self, student_module: nn.Module) -> None:
        """The second network may start from trained weights."""
        self.second.on_train_start()

    def optimizers(self) -> list[Optimizer]:
        """Return the second network's optimizer, and that of the projectors."""
        projectors = [] if self.contrast is None else [self.contrast.optimizer()]
        return [self.second.optimizer(), *projectors]

    def compute(
        self, student: Student, batch: TwoStreamBatch, supervised_loss: SupervisedLoss, progress: Progress
    ) -> StepOutput:
        """L = L_cnn + L_tra; in the beginning only labeled rows are contrasted."""
        outputs = student(batch.image), self.second(batch.image)
        logits, second_logits = (output.logits for output in outputs)
        both = losses_of_both(logits, second_logits, batch, supervised_loss, cross_dice, self.has_regions)
        weight = self.config.lambda_cross * sigmoid_rampup(progress.fraction, self.config.rampup)
        loss, scalars = both.total(weight), both.scalars()
        if self.contrast is not None:
            rows = len(batch.image) if progress.fraction >= self.config.contrast_start else batch.n_labeled
            features = [{tap: maps[:rows] for tap, maps in output.features.items()} for output in outputs]
            classes = [own[:rows] for own in self._classes(batch, logits, second_logits)]
            contrast = self.contrast(features, classes)
            loss = loss + 2 * self.config.lambda_contrast * contrast  # it stands in the loss of each network
            scalars["contrast"] = contrast.detach()
        return StepOutput(loss, scalars)

    def after_step(
        self, student_module: nn.Module, batch: TwoStreamBatch, output: StepOutput, progress: Progress
    ) -> None:
        """Stop a run whose contrast has had no negatives for long."""
        if self.contrast is not None:
            self.contrast.negatives.stop_if_none(progress.step)

    def _classes(self, batch: TwoStreamBatch, logits: Logits, second_logits: Logits) -> list[Tensor]:
        """Classes of the pixels of the student's maps and of the second network's, (B, *S) each, -1 = ignored."""
        known = pixel_classes(batch.target, self.has_regions, self.ignore_label)
        guesses = [self._predicted(finest(own)[batch.n_labeled :]) for own in (logits, second_logits)]
        if self.config.cross_labels:
            guesses.reverse()
        return [torch.cat([known, guess]) for guess in guesses]

    def _predicted(self, logits: Tensor) -> Tensor:
        """(B, C, *S) to the class of each pixel, (B, *S) int64."""
        if self.has_regions:
            return pixel_classes(hard_prediction(logits, True), True, None)
        return logits.argmax(dim=1)
