"""SP-Con: self-paced contrastive learning with meta-labels (Peng et al., NeurIPS 2021), joint training.

    L = L_sup + lambda_reg L_MT + lambda_sp sum_k lambda_k L_SPcon^k                     (supplement, eq. 15 with 14)

L_MT: consistency with a mean teacher (supplement, eq. 3), or other self-training
(:mod:`nnunet_semicon.methods.self_training`). L_SPcon^k: contrast of image embeddings in which two images
are a positive pair if they share meta-label k (slice position, patient), each pair weighted by how well the network
already agrees with it (:mod:`nnunet_semicon.methods.meta_contrast`).

Deviations: L_sup is nnU-Net's Dice + cross-entropy; features are averaged over a grid and the projectors have an Adam
of their own, because nnU-Net has instance normalization and SGD; scans x partitions are sampled in the joint stage
too; where few embeddings fit in a step, contrast is also against a queue of teacher embeddings; gamma is updated every
step. They are listed in docs/methods/sp_con.md.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nnunet_semicon.configuration.config import open_setting, setting
from nnunet_semicon.configuration.derived import Derived, Filled
from nnunet_semicon.configuration.facts import Facts
from nnunet_semicon.data.batch import TwoStreamBatch
from nnunet_semicon.losses.schedules import ema_decay
from nnunet_semicon.methods import meta_contrast, self_training
from nnunet_semicon.methods.base import (
    BuildContext,
    Encode,
    Method,
    Needs,
    Progress,
    StepOutput,
    Student,
    SupervisedLoss,
    finest,
    rows_of,
)
from nnunet_semicon.methods.meta_contrast import CONTRAST_PAPER, VIEWS, ContrastConfig, MetaContrast
from nnunet_semicon.methods.self_training import (
    Kind,
    SelfTraining,
    SelfTrainingConfig,
    is_soft,
    rows_per_image,
    teacher_logits,
)
from nnunet_semicon.networks.ema import segmentation_teacher
from nnunet_semicon.networks.taps import BOTTLENECK, FeatureTaps


class SPConConfig(ContrastConfig, SelfTrainingConfig):
    """Hyper-parameters of SP-Con beside those of the contrast and of self-training."""

    self_training: Kind = setting(
        "mean_teacher", "how unlabeled images teach beside the contrast", source="supplement, eq. 3"
    )
    lambda_sp: float = setting(5e-3, "weight of all contrastive terms", low=0, source="supplement 3.2 (ACDC)")
    lambda_reg: float = setting(
        1.0,
        "final weight of self-training (L_MT); 0: none",
        low=0,
        source="ours, not tuned; 0.1 in the paper",
    )
    rampup: float = open_setting("part of the run over which that weight grows; null: derived", low=0, high=1)
    head_lr: float = setting(
        1e-3, "learning rate of the projectors' own optimizer (Adam)", low=0, source="ours; the paper has one RAdam"
    )
    ema_decay: float = setting(
        0.99, "decay of the teacher's moving average", low=0, high=1, source="as for Mean Teacher; 0.999 in the paper"
    )


PAPER = {
    **CONTRAST_PAPER,
    "supervised_loss": Derived("ce", "supplement, eq. 2"),
    "optimizer": Derived("radam", "SP-Con's code"),
    "learning_rate": Derived(3e-5, "supplement: 1e-7 x 300 (ACDC)"),
    "lr_schedule": Derived("cosine", "supplement, Fig. 5"),
    "warmup": Derived(0.1, "supplement, Fig. 5: 10 epochs"),
    "weight_decay": Derived(1e-5, "SP-Con's code"),
    "lambda_sp": Derived(5e-3, "supplement 3.2 (ACDC)"),
    "lambda_reg": Derived(0.1, "supplement 3.2 (ACDC)"),
    "ema_decay": Derived(0.999, "supplement, eq. 3"),
}


class SPCon(Method):
    """Supervised loss, mean teacher, and self-paced contrast of images that share a meta-label."""

    Config = SPConConfig
    needs = Needs(views=1, student_views=VIEWS, draw_all=True, sample_scans=True, meta=True, taps=(BOTTLENECK,))
    paper = PAPER
    cost = "a forward pass of the teacher on the unlabeled images, and the projectors"

    def __init__(self, config: SPConConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        self.strong = build.strong
        self.contrast = MetaContrast(config, build)
        self.show = self.contrast.show
        self.self_training = SelfTraining.if_any(config, build)
        more = () if self.self_training is None else self.self_training.scalar_names
        self.scalar_names = ("supervised", *more, *self.contrast.scalar_names)
        self.has_regions = build.has_regions
        self.teacher = None
        self.teacher_is_asked = self.self_training is not None or self.contrast.has_queue
        if self.teacher_is_asked or config.predicts_with_teacher:
            self.teacher = segmentation_teacher(build.network)
            self.teacher_taps = FeatureTaps(self.teacher.module, (self.contrast.tap,))

    @classmethod
    def needs_of(cls, config: SPConConfig) -> Needs:
        """Sampler, tap and self-training are hyper-parameters; soft targets are learned on the contrasted rows."""
        needs = meta_contrast.needs_of(cls.needs, config)
        return needs if is_soft(config) else replace(needs, student_views=VIEWS + rows_per_image(config))

    @classmethod
    def derive(cls, config: SPConConfig, facts: Facts) -> Filled[SPConConfig]:
        """Fill in what the contrast and self-training leave open."""
        if is_soft(config):
            rampup = Derived(0.0, "SP-Con: the whole weight from the start")
        else:
            rampup = Derived(0.3, "as for copy-paste self-training")
        filled = Filled(config).fill(rampup=rampup)
        filled = filled.then(self_training.derive(filled.config, facts))
        return filled.then(meta_contrast.derive(filled.config, facts))

    def networks(self) -> dict[str, nn.Module]:
        """Return the moving average of the student, if there is one."""
        return {} if self.teacher is None else {"teacher": self.teacher.module}

    def on_train_start(self, student_module: nn.Module) -> None:
        """The teacher starts as the student, pre-trained weights included."""
        if self.teacher is not None:
            self.teacher.copy_from(student_module)
        self.contrast.on_train_start()

    def compute(
        self, student: Student, batch: TwoStreamBatch, supervised_loss: SupervisedLoss, progress: Progress
    ) -> StepOutput:
        """L = L_sup + lambda_reg L_MT + lambda_sp sum_k lambda_k L_SPcon^k."""
        n = batch.n_labeled
        strong = self.strong(batch.unlabeled)
        contrasted = torch.cat([batch.image, strong])
        images, lesson, for_after_step = [contrasted], None, {}
        if self.teacher is not None and self.teacher_is_asked:
            plain_logits = finest(self.teacher(batch.unlabeled))
            for_after_step["teacher_features"] = self.teacher_taps.take()[self.contrast.tap]
            if self.self_training is not None:
                lesson = self.self_training.lesson(batch, strong, self._pseudo_logits(batch.unlabeled, plain_logits))
                images += [] if self.self_training.is_soft else [lesson.images]
        output = student(torch.cat(images))

        supervised = supervised_loss(rows_of(output.logits, slice(0, n)), batch.target)
        features = output.features[self.contrast.tap][n : len(contrasted)]
        contrast = self.contrast(features, batch.meta, progress.fraction)
        loss = supervised + self.config.lambda_sp * contrast.loss
        scalars = {"supervised": supervised.detach(), **contrast.scalars}
        if self.self_training is not None and lesson is not None:
            taught = rows_of(output.logits, slice(-len(lesson.images), None))  # soft: the strong views, hard: more rows
            term, more = self.self_training.loss(taught, lesson, supervised_loss, progress.fraction)
            loss, scalars = loss + term, {**scalars, **more}
        return StepOutput(loss, scalars, for_after_step)

    def _pseudo_logits(self, images: Tensor, plain: Tensor) -> Tensor:
        """Return the logits of pseudo-labels; ``plain`` are the teacher's on the images as they are."""
        if self.teacher is None or not self.config.mirrored_teacher:
            return plain
        return teacher_logits(self.teacher, images, self.has_regions, mirrored=True)

    def after_step(
        self, student_module: nn.Module, batch: TwoStreamBatch, output: StepOutput, progress: Progress
    ) -> None:
        """Move the teacher, queue its embeddings, stop a run whose contrast has had no negatives for long."""
        decay = ema_decay(progress.step, self.config.ema_decay)
        if self.teacher is not None:
            self.teacher.update(student_module, decay)
        if self.contrast.has_queue:
            self.contrast.remember(output.for_after_step["teacher_features"], batch.meta, decay)
        self.contrast.negatives.stop_if_none(progress.step)

    def snapshot(
        self, encode: Encode, images: Tensor, meta: Mapping[str, Tensor], fraction: float
    ) -> Mapping[str, Tensor]:
        """The self-paced weights of all pairs of images."""
        return self.contrast.pair_weights(encode(images).features[self.contrast.tap], meta, fraction)

    def optimizers(self) -> list[Optimizer]:
        """Adam for the projectors: unlike those of SGD, its steps do not shrink with the weight of a term."""
        if not self.contrast.labels:
            return []
        # the gradient of a weak label is smaller than Adam's usual eps
        return [torch.optim.Adam(self.contrast.heads.parameters(), self.config.head_lr, eps=1e-12)]
