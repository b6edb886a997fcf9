"""BCP: bidirectional copy-paste (Bai et al., CVPR 2023).

    warm-up        L = L_sup(M x_i + (1 - M) x_j, M y_i + (1 - M) y_j)
    self-training  L = L_labeled + alpha L_unlabeled,   x_in = M x_i + (1 - M) u_p,   x_out = M u_q + (1 - M) x_j

M: 0 in a box of 2/3 of each side, 1 around it. x: labeled images; u: unlabeled ones. The labels of u are the classes
that the teacher predicts, the largest component of each. L_labeled, L_unlabeled: nnU-Net's loss on the pixels of x or
of u. The teacher is the student until the warm-up ends, then its moving average. ``predict_with``: inference uses the
student, or the teacher.

Deviations: listed in docs/methods/bcp.md.
"""

import torch
from torch import Tensor, nn

from nnunet_semicon.configuration.config import setting
from nnunet_semicon.configuration.derived import Derived
from nnunet_semicon.data.batch import TwoStreamBatch
from nnunet_semicon.losses.components import largest_components
from nnunet_semicon.losses.mixing import side_boxes
from nnunet_semicon.losses.pseudo_label import prediction
from nnunet_semicon.methods.base import (
    BuildContext,
    Method,
    Needs,
    Progress,
    StepOutput,
    Student,
    SupervisedLoss,
    finest,
)
from nnunet_semicon.methods.copy_paste import Targets, as_target, joined, labeled_targets, paste
from nnunet_semicon.methods.teacher import TeacherConfig
from nnunet_semicon.networks.ema import segmentation_teacher


class BCPConfig(TeacherConfig):
    """Hyper-parameters of bidirectional copy-paste."""

    supervised_warmup: float = setting(
        0.25, "part of the run on labels alone", low=0, high=1, source="authors' code for ACDC: 10000 of 40000 steps"
    )
    box_side: float = setting(2 / 3, "part of each side of the image that a box covers", low=0, high=1, source="paper")
    unlabeled_weight: float = setting(0.5, "weight of the pixels of unlabeled images (alpha)", low=0, source="paper")
    largest_component: bool = setting(
        True, "the teacher's labels keep the largest connected component of each class", source="paper"
    )
    ema_decay: float = setting(0.99, "decay of the teacher's moving average", low=0, high=1, source="paper")


PAPER = {
    "optimizer": Derived("sgd", "paper"),
    "learning_rate": Derived(1e-2, "paper"),
    "weight_decay": Derived(1e-4, "authors' code"),
    "supervised_warmup": Derived(0.25, "authors' code for ACDC: 10000 of 40000 steps"),
    "box_side": Derived(2 / 3, "paper"),
    "unlabeled_weight": Derived(0.5, "paper (alpha)"),
    "largest_component": Derived(True, "paper"),
    "ema_decay": Derived(0.99, "paper"),
}


class BCP(Method):
    """Boxes are exchanged between labeled images, later between labeled and unlabeled ones, in both directions."""

    Config = BCPConfig
    needs = Needs(views=1, student_views=1, paired=True)
    paper = PAPER
    cost = "a forward pass of the teacher on the unlabeled images, and components on the CPU; less during the warm-up"
    scalar_names = ("supervised", "self_training")

    def __init__(self, config: BCPConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        self.teacher = segmentation_teacher(build.network)
        self.has_regions = build.has_regions

    def networks(self) -> dict[str, nn.Module]:
        """Return the moving average of the student."""
        return {"teacher": self.teacher.module}

    def on_train_start(self, student_module: nn.Module) -> None:
        """The teacher starts as the student, pre-trained weights included."""
        self.teacher.copy_from(student_module)

    def compute(
        self, student: Student, batch: TwoStreamBatch, supervised_loss: SupervisedLoss, progress: Progress
    ) -> StepOutput:
        """L_sup on mixed labeled images during the warm-up, then L_labeled + alpha L_unlabeled."""
        labeled = labeled_targets(batch)
        boxes = side_boxes(batch.n_labeled, labeled.images.shape[2:], self.config.box_side)
        following = torch.arange(batch.n_labeled).roll(1)
        if self._is_warmup(progress):
            mixed = paste(labeled, labeled[following], boxes)
            supervised = supervised_loss(student(mixed.images).logits, mixed.target)
            return StepOutput(
                supervised, {"supervised": supervised.detach(), "self_training": torch.zeros_like(supervised.detach())}
            )

        unlabeled = self._pseudo_labeled(batch.unlabeled, labeled.target)
        inward = paste(labeled, unlabeled, boxes)
        outward = paste(unlabeled[following], labeled[following], boxes)
        mixed = joined(inward, outward)
        logits = student(mixed.images).logits
        of_labeled = supervised_loss(logits, mixed.target, mixed.weight)
        of_unlabeled = supervised_loss(logits, mixed.target, 1 - mixed.weight)
        return StepOutput(
            of_labeled + self.config.unlabeled_weight * of_unlabeled,
            {"supervised": of_labeled.detach(), "self_training": of_unlabeled.detach()},
        )

    def after_step(
        self, student_module: nn.Module, batch: TwoStreamBatch, output: StepOutput, progress: Progress
    ) -> None:
        """Move the teacher; during the warm-up it is the student."""
        if self._is_warmup(progress):
            self.teacher.copy_from(student_module)
        else:
            self.teacher.update(student_module, self.config.ema_decay)

    def _is_warmup(self, progress: Progress) -> bool:
        return progress.fraction < self.config.supervised_warmup

    def _pseudo_labeled(self, images: Tensor, like: Tensor) -> Targets:
        """Return unlabeled images with the teacher's labels; their pixels have no weight beside those of true labels.

        Args:
            images: (B, C, *S).
            like: target of the labeled images.
        """
        predicted, _ = prediction(finest(self.teacher(images)), self.has_regions)
        if self.config.largest_component:
            predicted = largest_components(predicted)
        return Targets(images, as_target(predicted, like), images.new_zeros((len(images), *images.shape[2:])))
