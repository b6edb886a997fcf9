"""FixMatch (Sohn et al., NeurIPS 2020) for segmentation.

    L   = L_sup + lambda_u L_u
    L_u = 1/N sum_i [max_c q_ic >= threshold] (-log p_iy),   y = argmax_c q_ic                        (eq. 4)

q: probabilities of the student itself on the weak view, without a gradient; p: on the strong view; i: the N pixels of
the unlabeled images. There is no teacher, no ramp and no mixing of images.

Deviations: listed in docs/methods/fixmatch.md.
"""

import torch
from torch import Tensor

from nnunet_semicon.configuration.config import Settings, setting
from nnunet_semicon.configuration.derived import Derived
from nnunet_semicon.data.batch import TwoStreamBatch
from nnunet_semicon.losses.masked import weighted_dice_ce
from nnunet_semicon.losses.pseudo_label import confident_prediction, kept_shares
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


class FixMatchConfig(Settings):
    """Hyper-parameters of FixMatch."""

    lambda_u: float = setting(1.0, "weight of the unlabeled images", low=0, source="FixMatch")
    threshold: float = setting(
        0.95, "probability from which a pseudo-label counts", low=0, high=1, source="FixMatch, UniMatch"
    )


PAPER = {
    "optimizer": Derived("sgd", "printed, for images of CIFAR-10"),
    "learning_rate": Derived(0.03, "printed, for images of CIFAR-10"),
    "weight_decay": Derived(5e-4, "printed, for images of CIFAR-10"),
    "supervised_loss": Derived("ce", "eq. 3"),
    "lambda_u": Derived(1.0, "printed"),
    "threshold": Derived(0.95, "printed"),
}


class FixMatch(Method):
    """The student learns under strong intensity changes what it predicts with confidence without them."""

    Config = FixMatchConfig
    needs = Needs(views=1, student_views=1)
    paper = PAPER
    cost = "a forward pass on the unlabeled images, without gradients"

    def __init__(self, config: FixMatchConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        self.strong = build.strong
        self.has_regions, self.n_heads = build.has_regions, build.n_heads
        self.scalar_names = ("supervised", "unlabeled", *(f"kept_{number}" for number in range(build.n_heads)))

    def compute(
        self, student: Student, batch: TwoStreamBatch, supervised_loss: SupervisedLoss, progress: Progress
    ) -> StepOutput:
        """L = L_sup + lambda_u L_u."""
        n = batch.n_labeled
        weak_logits = student.no_grad(batch.unlabeled)
        predicted, counts = confident_prediction(weak_logits, self.config.threshold, self.has_regions)
        logits = student(torch.cat([batch.labeled, self.strong(batch.unlabeled)])).logits

        supervised = supervised_loss(rows_of(logits, slice(0, n)), batch.target)
        unlabeled = cross_entropy(finest(logits)[n:], predicted, counts, self.has_regions)
        kept = kept_shares(counts, predicted, self.n_heads, self.has_regions)
        return StepOutput(
            supervised + self.config.lambda_u * unlabeled,
            {
                "supervised": supervised.detach(),
                "unlabeled": unlabeled.detach(),
                **{f"kept_{number}": share for number, share in enumerate(kept)},
            },
        )


def cross_entropy(logits: Tensor, predicted: Tensor, counts: Tensor, has_regions: bool) -> Tensor:
    """Return the cross-entropy of the pixels that count, divided by the number of all pixels.

    Args:
        logits: (B, K, *S).
        predicted: (B, 1, *S) int64 classes, or (B, K, *S) bool regions.
        counts: (B, *S) bool.
        has_regions: channels are regions; the mean over them is taken.
    """
    return weighted_dice_ce(
        logits,
        predicted,
        counts,
        has_regions=has_regions,
        ignore_label=None,
        weight_dice=0.0,
        batch_dice=False,  # this and the rest are of Dice
        do_bg=False,
        smooth=0.0,
    )
