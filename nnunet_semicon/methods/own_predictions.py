"""Self-training on the network's own hard predictions, without a teacher or a threshold (Yang, nnFilterMatch, 2025).

    L = L_sup(x) + lambda_reg w(t) L_sup(g(u), g(y)),    y = argmax of the network's logits on u

x: labeled images; u: unlabeled ones. g: a random flip or rotation by 90 degrees, other than the identity. L_sup:
nnU-Net's loss, over all scales of deep supervision. w(t): 0 during the warm-up, then 1, or growing to 1.

Deviations: listed in docs/methods/own_predictions.md.
"""

import torch

from nnunet_semicon.configuration.config import Settings, setting
from nnunet_semicon.configuration.derived import Derived
from nnunet_semicon.data.batch import TwoStreamBatch
from nnunet_semicon.losses.geometry import moved, random_maps
from nnunet_semicon.losses.pseudo_label import prediction
from nnunet_semicon.losses.schedules import sigmoid_rampup
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
from nnunet_semicon.methods.copy_paste import as_target, labeled_targets


class OwnPredictionsConfig(Settings):
    """Hyper-parameters of self-training on own predictions."""

    supervised_warmup: float = setting(
        1 / 60, "part of the run on labels alone", low=0, high=1, source="authors' code, 5 % labeled: 5 of 300 epochs"
    )
    lambda_reg: float = setting(1.0, "final weight of self-training", low=0, source="authors' code")
    rampup: float = setting(
        0.0, "part of the run, after the warm-up, over which that weight grows", low=0, high=1, source="authors' code"
    )


PAPER = {
    "optimizer": Derived("sgd", "authors' code"),
    "learning_rate": Derived(5e-3, "authors' page, 5 % labeled; nnU-Net's with 10 %"),
    "weight_decay": Derived(3e-3, "authors' page, 5 % labeled; nnU-Net's with 10 %"),
    "supervised_warmup": Derived(1 / 60, "authors' code, 5 % labeled: 5 of 300 epochs; 20 with 10 %"),
    "lambda_reg": Derived(1.0, "authors' code"),
    "rampup": Derived(0.0, "authors' code"),
}


class OwnPredictions(Method):
    """The network's hard predictions, flipped and rotated with their images, are labels like others."""

    Config = OwnPredictionsConfig
    needs = Needs(views=1, student_views=1)
    paper = PAPER
    cost = "a forward pass of the network on the unlabeled images"
    scalar_names = ("supervised", "self_training")

    def __init__(self, config: OwnPredictionsConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        self.has_regions = build.has_regions

    def compute(
        self, student: Student, batch: TwoStreamBatch, supervised_loss: SupervisedLoss, progress: Progress
    ) -> StepOutput:
        """L_sup during the warm-up, then L_sup + lambda_reg w(t) L_ST."""
        if progress.fraction < self.config.supervised_warmup:
            supervised = supervised_loss(student(batch.labeled).logits, batch.target)
            return StepOutput(
                supervised, {"supervised": supervised.detach(), "self_training": torch.zeros_like(supervised.detach())}
            )

        predicted, _ = prediction(student.no_grad(batch.unlabeled), self.has_regions)
        target = as_target(predicted, labeled_targets(batch).target)
        maps = random_maps(len(target), target.shape[2:])
        n = batch.n_labeled
        logits = student(torch.cat([batch.labeled, moved(batch.unlabeled, maps)])).logits

        supervised = supervised_loss(rows_of(logits, slice(0, n)), batch.target)
        taught = supervised_loss(rows_of(logits, slice(n, None)), moved(target, maps))
        since = progress.fraction - self.config.supervised_warmup
        weight = self.config.lambda_reg * sigmoid_rampup(since, self.config.rampup)
        return StepOutput(
            supervised + weight * taught, {"supervised": supervised.detach(), "self_training": taught.detach()}
        )
