"""Supervised local contrast as a stage of its own: encoder and decoder learn from the labeled scans of the fold.

    L_l of two views of every labeled image                                    (Hu et al., MICCAI 2021, section 2.2)

The second of the paper's three stages: global contrast of the encoder on all images, this, fine-tuning. Both views show
the same voxels, with other intensities. Only training cases of the fold are drawn; the reference code, under its own
defaults, uses the labels of validation and test scans here.

Deviations: nnU-Net's crops and augmentation make the first view; its intensities are changed once more for the second.
They are listed in docs/methods/supervised_local.md.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nnunet_semicon.configuration.derived import Derived, Filled
from nnunet_semicon.configuration.facts import Facts
from nnunet_semicon.data.batch import TwoStreamBatch, pixel_classes
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
from nnunet_semicon.methods.local_term import LOCAL_PAPER, LocalConfig, LocalTerm, derive, with_taps

VIEWS = 2
CHANGE_PROBABILITY = 0.5  # of each change of intensity (Hu's code)


class SupervisedLocalPretrainConfig(LocalConfig):
    """Hyper-parameters of the stage: those of the contrast."""


DEFAULTS = {
    **PretrainMethod.defaults,
    "optimizer": Derived("adam", "section 3"),
    "learning_rate": Derived(1e-4, "section 3"),
    "weight_decay": Derived(1e-4, "Hu's code"),
}

PAPER = {**LOCAL_PAPER, **DEFAULTS}


class SupervisedLocalPretrain(PretrainMethod):
    """Local contrast of labeled pixels alone; trains encoder and decoder."""

    Config = SupervisedLocalPretrainConfig
    needs = Needs(labeled_views=VIEWS, stage="pretrain")
    defaults = DEFAULTS
    paper = PAPER
    cost = "the heads and the contrast"
    scalar_names = ("local",)

    def __init__(self, config: SupervisedLocalPretrainConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        self.local = LocalTerm(config, build)
        self.has_regions, self.ignore_label = build.has_regions, build.ignore_label

    @classmethod
    def needs_of(cls, config: SupervisedLocalPretrainConfig) -> Needs:
        """Maps follow from the levels."""
        return with_taps(cls.needs, config)

    @classmethod
    def derive(cls, config: SupervisedLocalPretrainConfig, facts: Facts) -> Filled[SupervisedLocalPretrainConfig]:
        """Fill in the pixels that meet."""
        return derive(config, facts, facts.rows.student_rows)

    def compute(
        self, student: Student, batch: TwoStreamBatch, supervised_loss: SupervisedLoss, progress: Progress
    ) -> StepOutput:
        """L_l; the supervised loss is not used."""
        local = self._contrast(student, batch)
        return StepOutput(local, {"local": local.detach()})

    def after_step(
        self, student_module: nn.Module, batch: TwoStreamBatch, output: StepOutput, progress: Progress
    ) -> None:
        """Stop a run whose contrast has had no negatives for long."""
        self.local.negatives.stop_if_none(progress.step)

    def validate(self, student: Encode, batch: TwoStreamBatch) -> Mapping[str, Tensor]:
        """Return the contrast (``loss``) of validation images."""
        return {"loss": self._contrast(student, batch)}

    def _contrast(self, student: Encode, batch: TwoStreamBatch) -> Tensor:
        """Return L_l of two views."""
        classes = pixel_classes(batch.target, self.has_regions, self.ignore_label)
        output = student(torch.cat([batch.labeled, other_intensities(batch.labeled)]))
        local: Tensor = self.local(output.features, torch.cat([classes] * VIEWS))
        return local


def other_intensities(image: Tensor) -> Tensor:
    """Change brightness, gamma and noise of every channel, each with probability 1/2 (Hu's code, section 3.4).

    Args:
        image: (B, C, *S) normalized intensities.

    Returns:
        (B, C, *S); no pixel moves.
    """
    shape = (*image.shape[:2], *[1] * (image.dim() - 2))

    def chosen() -> Tensor:
        return (torch.rand(shape, device=image.device) < CHANGE_PROBABILITY).to(image.dtype)

    brightness = 1 + chosen() * (torch.rand(shape, device=image.device) - 0.5)  # 0.5 to 1.5
    exponent = torch.exp(chosen() * (torch.rand(shape, device=image.device) - 0.5))  # 0.6 to 1.65
    noise = chosen() * 0.1 * torch.randn_like(image)
    axes = tuple(range(2, image.dim()))
    low, high = image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)
    spread = (high - low).clamp_min(torch.finfo(image.dtype).eps)
    curved: Tensor = ((image - low) / spread).clamp(0, 1) ** exponent * spread + low
    return curved * brightness + noise
