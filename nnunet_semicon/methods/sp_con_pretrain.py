"""SP-Con's pre-training: the encoder learns from all images and their meta-labels, before there is any mask.

    L_SP = sum_k lambda_k L_SPcon^k                                                      (SP-Con supplement, eq. 14)

(Peng et al., NeurIPS 2021.) Two views of every image, each with its own geometry and intensities. With ``lambda`` on
``self`` alone and ``regularizer = none`` it is SimCLR (Chen et al., ICML 2020), the paper's "Unsup. Con."; with
``regularizer = none`` plain meta-label contrast.

Deviations: features are averaged over a grid, because nnU-Net has instance normalization; where few embeddings fit in a
step, contrast is also against a queue of embeddings of a moving average of the encoder; gamma and the learning rate are
updated every step. They are listed in docs/methods/sp_con_pretrain.md.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_semicon.configuration.config import setting
from nnunet_semicon.configuration.derived import Filled
from nnunet_semicon.configuration.facts import Facts
from nnunet_semicon.data.batch import TwoStreamBatch
from nnunet_semicon.errors import UserError
from nnunet_semicon.losses.schedules import ema_decay
from nnunet_semicon.methods.base import (
    BuildContext,
    Encode,
    Needs,
    PretrainMethod,
    Progress,
    StepOutput,
    Student,
    SupervisedLoss,
)
from nnunet_semicon.methods.meta_contrast import CONTRAST_PAPER, VIEWS, ContrastConfig, MetaContrast, derive, needs_of
from nnunet_semicon.networks.ema import EmaTeacher
from nnunet_semicon.networks.taps import BOTTLENECK, stage_of


class SPConPretrainConfig(ContrastConfig):
    """Hyper-parameters of the pre-training beside those of the contrast."""

    ema_decay: float = setting(
        0.99, "decay of the moving average that fills the queue", low=0, high=1, source="ours, as for Mean Teacher"
    )


PAPER = {**CONTRAST_PAPER, **PretrainMethod.defaults}


class SPConPretrain(PretrainMethod):
    """Self-paced contrast of images that share a meta-label; trains the encoder alone."""

    Config = SPConPretrainConfig
    needs = Needs(
        views=VIEWS,
        student_views=VIEWS,
        draw_all=True,
        sample_scans=True,
        meta=True,
        taps=(BOTTLENECK,),
        encoder_only=True,
        stage="pretrain",
    )
    paper = PAPER
    cost = "the projectors; the decoder does not run"

    teacher: Any  # EmaTeacher of the encoder, or None without a queue

    def __init__(self, config: SPConPretrainConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        self.strong = build.strong
        self.contrast = MetaContrast(config, build)
        self.scalar_names = self.contrast.scalar_names
        self.show = self.contrast.show
        encoder: Any = build.network.encoder
        self.teacher = EmaTeacher(encoder) if self.contrast.has_queue else None

    @classmethod
    def needs_of(cls, config: SPConPretrainConfig) -> Needs:
        """The sampler and the tap are hyper-parameters."""
        return needs_of(cls.needs, config)

    @classmethod
    def derive(cls, config: SPConPretrainConfig, facts: Facts) -> Filled[SPConPretrainConfig]:
        """Fill in the weights of the meta-labels there are, the size of the queue and the range of gamma.

        Raises:
            UserError: no meta-label has a weight.
        """
        filled = derive(config, facts)
        if not filled.config.lambda_:
            reasons = "".join(f"; no {name}: {why}" for name, why in facts.unusable.items())
            raise UserError(
                f"no meta-label has a weight above 0, so there is nothing to learn{reasons}: set one entry of lambda, "
                "e.g. lambda.self=1, which needs no meta-label"
            )
        return filled

    def on_train_start(self, student_module: nn.Module) -> None:
        """The moving average starts as the encoder."""
        if self.teacher is not None:
            self.teacher.copy_from(student_module.encoder)
        self.contrast.on_train_start()

    def compute(
        self, student: Student, batch: TwoStreamBatch, supervised_loss: SupervisedLoss, progress: Progress
    ) -> StepOutput:
        """L_SP; the supervised loss is not used."""
        contrast = self.contrast(self._features(student, batch), batch.meta, progress.fraction)
        return StepOutput(contrast.loss, contrast.scalars)

    def after_step(
        self, student_module: nn.Module, batch: TwoStreamBatch, output: StepOutput, progress: Progress
    ) -> None:
        """Move the average, queue its embeddings, stop a run whose contrast has had no negatives for long."""
        if self.teacher is not None:
            decay = ema_decay(progress.step, self.config.ema_decay)
            self.teacher.update(student_module.encoder, decay)
            features = self.teacher(batch.image)[stage_of(self.contrast.tap)]
            self.contrast.remember(features, batch.meta, decay)
        self.contrast.negatives.stop_if_none(progress.step)

    def validate(self, student: Encode, batch: TwoStreamBatch) -> Mapping[str, Tensor]:
        """Plain contrast (``loss``), alignment and uniformity of every meta-label on validation images."""
        return self.contrast.quality(self._features(student, batch), batch.meta)

    def snapshot(
        self, encode: Encode, images: Tensor, meta: Mapping[str, Tensor], fraction: float
    ) -> Mapping[str, Tensor]:
        """The self-paced weights of all pairs of images."""
        return self.contrast.pair_weights(encode(images).features[self.contrast.tap], meta, fraction)

    def _features(self, student: Encode, batch: TwoStreamBatch) -> Tensor:
        return student(self.strong(torch.cat([batch.image, batch.views[0]]))).features[self.contrast.tap]
