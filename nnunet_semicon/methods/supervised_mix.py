"""Supervised mix: labeled scans only, with the augmentation of copy-paste self-training.

    L = L_sup(x) + L_sup(x')

x': the strong view of a labeled image, with a box of another labeled image pasted in, or all but that box; its target
is mixed alike. It shows the gain of the augmentation alone, so that the rest is the gain of the unlabeled scans.
"""

import torch

from nnunet_semicon.configuration.derived import Filled
from nnunet_semicon.configuration.facts import Facts
from nnunet_semicon.data.batch import TwoStreamBatch
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
from nnunet_semicon.methods.copy_paste import (
    PasteConfig,
    Targets,
    boxes,
    labeled_targets,
    paste,
    refuse_impossible_boxes,
)


class SupervisedMixConfig(PasteConfig):
    """Hyper-parameters of the boxes; there are no others."""


class SupervisedMix(Method):
    """Every labeled image is seen twice: as nnU-Net augments it, and strongly changed with a box of another one."""

    Config = SupervisedMixConfig
    needs = Needs(labeled_views=2)
    cost = "nothing beyond the second row of each labeled image"
    scalar_names = ("supervised", "mixed")

    def __init__(self, config: SupervisedMixConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        self.strong = build.strong

    @classmethod
    def derive(cls, config: SupervisedMixConfig, facts: Facts) -> Filled[SupervisedMixConfig]:
        """Refuse boxes of no possible size; nothing is open.

        Raises:
            UserError: the smallest box is larger than the largest.
        """
        refuse_impossible_boxes(config)
        return Filled(config)

    def compute(
        self, student: Student, batch: TwoStreamBatch, supervised_loss: SupervisedLoss, progress: Progress
    ) -> StepOutput:
        """L = L_sup(x) + L_sup(x')."""
        labeled = labeled_targets(batch)
        n, size = len(labeled.images), tuple(labeled.images.shape[2:])
        masks = boxes(self.config, n, size, self.config.paste_probability)
        strong = Targets(self.strong(labeled.images), labeled.target, labeled.weight)
        mixed = paste(strong, labeled[torch.randperm(n)], masks)
        logits = student(torch.cat([labeled.images, mixed.images])).logits

        supervised = supervised_loss(rows_of(logits, slice(0, n)), batch.target)
        of_mixed = supervised_loss(rows_of(logits, slice(n, None)), mixed.target)
        return StepOutput(supervised + of_mixed, {"supervised": supervised.detach(), "mixed": of_mixed.detach()})
