"""MCSC: a CNN and a Transformer teach each other, and contrast their pixels at several scales (Liu et al., BMVC 2023).

    L_x = L_sup(x) + lambda_cross w(t) L_cps(x) + lambda_contrast L_cl,    L = L_cnn + L_tra

L_cps(x): Dice of network x with the hard prediction of the other. L_cl: contrast of the pixels of both networks
(:mod:`nnunet_semicon.methods.scale_term`); a pixel's class is its label, or, on unlabeled rows, what the *other*
network predicts there. w(t): exponential ramp. The student may also learn from a moving average of itself
(:mod:`nnunet_semicon.methods.self_training`). Inference uses the student, the planned network; ``semicon export
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
from nnunet_semicon.losses.schedules import ema_decay, sigmoid_rampup
from nnunet_semicon.methods import scale_term, second_network, self_training
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
    rows_of,
)
from nnunet_semicon.methods.scale_term import ScaleConfig, ScaleTerm, scales_of, taps_of
from nnunet_semicon.methods.second_network import BothLosses, SecondNetwork, SecondNetworkConfig, losses_of_both
from nnunet_semicon.methods.self_training import Kind, SelfTraining, SelfTrainingConfig, rows_per_image, teacher_logits
from nnunet_semicon.networks.ema import segmentation_teacher


class MCSCConfig(ScaleConfig, SecondNetworkConfig, SelfTrainingConfig):
    """Hyper-parameters beside those of the contrast, of the second network and of self-training."""

    self_training: Kind = setting(
        "none", "how unlabeled images also teach, through a moving average of the student", source="MCSC: not at all"
    )
    lambda_cross: float = setting(0.1, "final weight of the cross supervision", low=0, source="MCSC's code")
    rampup: float = setting(
        0.75,
        "part of the run over which that weight grows, and that of self-training",
        low=0,
        high=1,
        source="MCSC's code: 30000 of 40000 steps",
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
        self.strong = build.strong
        self.self_training, self.teacher = SelfTraining.if_any(config, build), None
        if self.self_training is not None:
            self.scalar_names += self.self_training.scalar_names
        if self.self_training is not None or config.predicts_with_teacher:
            self.teacher = segmentation_teacher(build.network)

    @classmethod
    def needs_of(cls, config: MCSCConfig) -> Needs:
        """The maps follow from the scales; the second network and self-training are hyper-parameters."""
        views = cls.needs.student_views + rows_per_image(config)
        return replace(cls.needs, student_views=views, taps=taps_of(config), second_network=config.second_network)

    @classmethod
    def derive(cls, config: MCSCConfig, facts: Facts) -> Filled[MCSCConfig]:
        """Fill in what the second network, the contrast and self-training leave open."""
        filled = second_network.derive(config)
        filled = filled.then(scale_term.derive(filled.config, facts))
        return filled.then(self_training.derive(filled.config, facts))

    def networks(self) -> dict[str, nn.Module]:
        """Return the network that the student learns from, and its moving average if there is one."""
        teacher = {} if self.teacher is None else {"teacher": self.teacher.module}
        return {"second": self.second.network, **teacher}

    def on_train_start(self, student_module: nn.Module) -> None:
        """The second network may start from trained weights; a teacher starts as the student."""
        self.second.on_train_start()
        if self.teacher is not None:
            self.teacher.copy_from(student_module)

    def optimizers(self) -> list[Optimizer]:
        """Return the second network's optimizer, and that of the projectors."""
        projectors = [] if self.contrast is None else [self.contrast.optimizer()]
        return [self.second.optimizer(), *projectors]

    def compute(
        self, student: Student, batch: TwoStreamBatch, supervised_loss: SupervisedLoss, progress: Progress
    ) -> StepOutput:
        """L = L_cnn + L_tra, and self-training; in the beginning only labeled rows are contrasted."""
        images, lesson = batch.image, None
        if self.self_training is not None and self.teacher is not None:
            pseudo = teacher_logits(self.teacher, batch.unlabeled, self.has_regions, self.config.mirrored_teacher)
            lesson = self.self_training.lesson(batch, self.strong(batch.unlabeled), pseudo)
            images = torch.cat([images, lesson.images])
        outputs = student(images), self.second(batch.image)
        plain = slice(0, len(batch.image))
        logits, second_logits = rows_of(outputs[0].logits, plain), outputs[1].logits
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
        if self.self_training is not None and lesson is not None:
            taught = rows_of(outputs[0].logits, slice(plain.stop, None))
            term, more = self.self_training.loss(taught, lesson, supervised_loss, progress.fraction)
            loss, scalars = loss + term, {**scalars, **more}
        return StepOutput(loss, scalars)

    def after_step(
        self, student_module: nn.Module, batch: TwoStreamBatch, output: StepOutput, progress: Progress
    ) -> None:
        """Move a teacher; stop a run whose contrast has had no negatives for long."""
        if self.teacher is not None:
            self.teacher.update(student_module, ema_decay(progress.step, self.config.ema_decay))
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
