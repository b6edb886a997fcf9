"""UniMatch (Yang et al., CVPR 2023), as its authors use it for medical images.

    L   = L_sup + lambda_u L_u
    L_u = 1/2 D(p(weak view, half of the feature channels dropped)) + 1/4 D(p(strong view 1)) + 1/4 D(p(strong view 2))

D: minus the soft Dice with the pseudo-label, over the pixels where it counts. The pseudo-label is the argmax of the
student itself on the weak view, without a gradient; it counts where its probability is at least ``threshold``. Each
strong view may show a box of that of another unlabeled image, whose pseudo-label counts there (CutMix).

Deviations: listed in docs/methods/unimatch.md.
"""

from dataclasses import replace

import torch
from torch import Tensor

from nnunet_semicon.configuration.config import Settings, setting
from nnunet_semicon.configuration.derived import Derived, Filled
from nnunet_semicon.configuration.facts import Facts
from nnunet_semicon.data.batch import TwoStreamBatch
from nnunet_semicon.errors import UserError
from nnunet_semicon.losses.masked import weighted_dice_ce
from nnunet_semicon.losses.mixing import chosen_rows, only_rows, random_boxes
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
from nnunet_semicon.methods.copy_paste import Targets, paste

FEATURES, STRONG = 0.5, 0.25  # weights in L_u: of the dropped features, and of each strong view
LONGEST_TO_SHORTEST = 1 / 0.3  # side of a box at most, as in UniMatch's code
SMOOTH = 1e-5  # of Dice, as in UniMatch's code


class UniMatchConfig(Settings):
    """Hyper-parameters of UniMatch."""

    lambda_u: float = setting(1.0, "weight of the unlabeled images", low=0, source="UniMatch's eq. 7")
    threshold: float = setting(0.95, "probability from which a pseudo-label counts", low=0, high=1, source="UniMatch")
    cutmix_probability: float = setting(
        0.5,
        "part of the strong views that get a box of another unlabeled image",
        low=0,
        high=1,
        source="UniMatch's code",
    )
    box_min: float = setting(
        0.02, "smallest part of an image that a box covers", low=0, high=1, source="UniMatch's code"
    )
    box_max: float = setting(0.4, "largest part of an image that a box covers", low=0, high=1, source="UniMatch's code")


PAPER = {
    "optimizer": Derived("sgd", "UniMatch's code for ACDC"),
    "learning_rate": Derived(1e-2, "UniMatch's code for ACDC"),
    "weight_decay": Derived(1e-4, "UniMatch's code for ACDC"),
    "lambda_u": Derived(2.0, "UniMatch's code for ACDC: it halves the sum of cross-entropy and Dice, nnU-Net does not"),
    "threshold": Derived(0.95, "UniMatch's code for ACDC"),
    "cutmix_probability": Derived(0.5, "UniMatch's code for ACDC"),
    "box_min": Derived(0.02, "UniMatch's code for ACDC"),
    "box_max": Derived(0.4, "UniMatch's code for ACDC"),
}


class UniMatch(Method):
    """The student learns its own confident predictions, in two strong views and without half of its features."""

    Config = UniMatchConfig
    needs = Needs(views=1, student_views=3, perturb=True)
    paper = PAPER
    cost = "a forward pass on the unlabeled images, without gradients"

    def __init__(self, config: UniMatchConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        self.strong = build.strong
        self.has_regions, self.n_heads = build.has_regions, build.n_heads
        kept = [f"kept_{number}" for number in range(build.n_heads)]
        self.scalar_names = ("supervised", "features", "strong", *kept)

    @classmethod
    def derive(cls, config: UniMatchConfig, facts: Facts) -> Filled[UniMatchConfig]:
        """Refuse boxes of no possible size; nothing is open.

        Raises:
            UserError: the smallest box is larger than the largest.
        """
        if config.box_min > config.box_max:
            raise UserError(
                f"'box_min' is {config.box_min:g} and 'box_max' is {config.box_max:g}, expected a smaller 'box_min': "
                "the parts of an image that a box covers lie between them"
            )
        return Filled(config)

    def compute(
        self, student: Student, batch: TwoStreamBatch, supervised_loss: SupervisedLoss, progress: Progress
    ) -> StepOutput:
        """L = L_sup + lambda_u L_u."""
        n, weak_images = batch.n_labeled, batch.unlabeled
        weak_logits = student.no_grad(weak_images)
        predicted, counts = confident_prediction(weak_logits, self.config.threshold, self.has_regions)
        weak = Targets(weak_images, predicted, counts.float())
        strong = [cutmix(replace(weak, images=self.strong(weak_images)), self.config) for _ in range(2)]
        images = torch.cat([batch.labeled, weak.images, *(view.images for view in strong)])
        perturb = torch.zeros(len(images), dtype=torch.bool)
        perturb[n : n + len(weak_images)] = True
        logits = student(images, perturb).logits

        supervised = supervised_loss(rows_of(logits, slice(0, n)), batch.target)
        of_features, *of_strong = [
            minus_dice(own, view.target, view.weight, self.has_regions)
            for own, view in zip(finest(logits)[n:].chunk(3), (weak, *strong), strict=True)
        ]
        unlabeled = FEATURES * of_features + STRONG * sum(of_strong)
        kept = kept_shares(counts, predicted, self.n_heads, self.has_regions)
        return StepOutput(
            supervised + self.config.lambda_u * unlabeled,
            {
                "supervised": supervised.detach(),
                "features": of_features.detach(),
                "strong": torch.stack(of_strong).detach().mean(),
                **{f"kept_{number}": share for number, share in enumerate(kept)},
            },
        )


def cutmix(views: Targets, config: UniMatchConfig) -> Targets:
    """Return views of which some show a box of another one; targets and weights are mixed alike."""
    count, size = len(views.images), views.images.shape[2:]
    boxes = random_boxes(count, size, (config.box_min, config.box_max), LONGEST_TO_SHORTEST)
    return paste(views, views[others(count)], only_rows(boxes, chosen_rows(count, config.cutmix_probability)))


def others(count: int) -> Tensor:
    """Return for each row another one, (count,) int64: a random cycle through all rows; a single row has itself."""
    order = torch.randperm(count)
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def minus_dice(logits: Tensor, target: Tensor, weight: Tensor, has_regions: bool) -> Tensor:
    """Return minus the soft Dice of all rows together, the mean over classes (background included) or regions.

    Args:
        logits: (B, K, *S).
        target: (B, 1, *S) int64 classes, or (B, K, *S) bool regions.
        weight: (B, *S) in [0, 1]; without any weight Dice is 1, without a gradient.
        has_regions: channels are regions.
    """
    return weighted_dice_ce(
        logits,
        target,
        weight,
        has_regions=has_regions,
        ignore_label=None,
        weight_ce=0.0,
        batch_dice=True,
        do_bg=True,
        smooth=SMOOTH,
    )
