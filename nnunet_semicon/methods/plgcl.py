"""PLGCL: pseudo-labels guide the contrast of patches, entropy guides which patches (Basak and Yin, CVPR 2023).

    L = L_sup + lambda_reg w(t) L_Reg + lambda_patch L_PLGCL                                        (poster, step 6)

L_Reg: cross-entropy of the student on the strong view with its moving average, the teacher, on the weak one. L_PLGCL:
windows of one class are drawn together and pushed from those of all other classes
(:mod:`nnunet_semicon.methods.patch_term`); the class of a pixel is its label, or the teacher's pseudo-label; which
windows are drawn follows from the entropy of the teacher's probabilities. w(t): exponential ramp. A warm-up on labels
alone comes first. ``predict_with``: inference uses the student, or the teacher.

Deviations and choices where the poster is silent are listed in docs/methods/plgcl.md.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from nnunet_semicon.configuration.config import setting
from nnunet_semicon.configuration.derived import Derived, Filled
from nnunet_semicon.configuration.facts import Facts
from nnunet_semicon.data.batch import TwoStreamBatch, pixel_classes
from nnunet_semicon.losses.entropy import binary_entropy
from nnunet_semicon.losses.pseudo_label import class_probabilities
from nnunet_semicon.losses.schedules import ema_decay
from nnunet_semicon.methods import patch_term, self_training
from nnunet_semicon.methods.base import (
    BuildContext,
    Encode,
    Method,
    Needs,
    Progress,
    Show,
    StepOutput,
    Student,
    SupervisedLoss,
    finest,
    rows_of,
)
from nnunet_semicon.methods.patch_term import MAP, PatchConfig, PatchTerm, tap_of
from nnunet_semicon.methods.self_training import (
    Kind,
    SelfTraining,
    SelfTrainingConfig,
    is_soft,
    rows_per_image,
    teacher_logits,
)
from nnunet_semicon.networks.ema import segmentation_teacher
from nnunet_semicon.networks.taps import FeatureTaps


class PLGCLConfig(PatchConfig, SelfTrainingConfig):
    """Hyper-parameters of PLGCL beside those of the contrast and of self-training."""

    self_training: Kind = setting(
        "cross_entropy", "how unlabeled images teach beside the contrast (L_Reg)", source="poster, step 4"
    )
    supervised_warmup: float = setting(
        1 / 3, "part of the run on labels alone", low=0, high=1, source="authors' code: 100 of 300 epochs"
    )
    lambda_reg: float = setting(
        1.0, "final weight of self-training (L_Reg, beta)", low=0, source="ours, not tuned; 4 in the code"
    )
    rampup: float = setting(
        0.2, "part of the run, after the warm-up, over which that weight grows", low=0, high=1, source="ours"
    )
    lambda_patch: float = setting(
        0.05,
        "weight of L_PLGCL (gamma)",
        low=0,
        source="ours; the code's 0.5 outweighs nnU-Net's loss",
    )
    ema_decay: float = setting(
        0.99, "decay of the teacher's moving average", low=0, high=1, source="as for Mean Teacher; 0.999 in the code"
    )


PAPER = {
    "supervised_loss": Derived("ce", "poster, step 5"),
    "optimizer": Derived("sgd", "authors' code, joint stage"),
    "learning_rate": Derived(7e-3, "authors' code, joint stage"),
    "supervised_warmup": Derived(1 / 3, "authors' code: 100 of 300 epochs"),
    "lambda_reg": Derived(4.0, "authors' code (beta)"),
    "lambda_patch": Derived(0.5, "authors' code (gamma)"),
    "ema_decay": Derived(0.999, "authors' code"),
    "temperature": Derived(1.0, "authors' code, joint stage"),
    "patch_source": Derived("image", "authors' code"),
    "window": Derived(0.5, "authors' code: 256 of 512 pixels"),
    "guidance": Derived("entropy", "poster"),
    "entropy_bits": Derived(False, "poster, step 3: natural logarithm"),
    "queue_size": Derived(4096, "authors' code"),
    "embedding_dim": Derived(128, "authors' code"),
}


class PLGCL(Method):
    """Supervised loss, weak-strong regularization by a mean teacher, and contrast of windows of its pseudo-labels."""

    Config = PLGCLConfig
    needs = Needs(views=1, student_views=1, taps=(MAP,))
    paper = PAPER
    cost = "after the warm-up a forward pass of the teacher on all images, and the contrast; during it less than usual"
    show = Show("pseudo_labels", cases=3, per_case=1, moments=(0.2, 0.4, 0.6, 0.8, 1.0))

    def __init__(self, config: PLGCLConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        self.strong = build.strong
        self.has_regions, self.ignore_label = build.has_regions, build.ignore_label
        self.patches = PatchTerm(config, build) if config.lambda_patch > 0 else None
        self.tap = tap_of(config)
        self.self_training = SelfTraining.if_any(config, build)
        more = () if self.self_training is None else self.self_training.scalar_names
        self.scalar_names = ("supervised", *more, *["contrast"] * (self.patches is not None))
        self.teacher = segmentation_teacher(build.network)
        self.teacher_taps = FeatureTaps(self.teacher.module, (MAP,))

    @classmethod
    def needs_of(cls, config: PLGCLConfig) -> Needs:
        """Windows that are encoded again are rows of the student, one for each unlabeled image; so are mixed images."""
        views = cls.needs.student_views + (0 if is_soft(config) else rows_per_image(config))
        if config.lambda_patch == 0:
            return replace(cls.needs, student_views=views, taps=())
        views += config.patch_source == "image"
        return replace(cls.needs, student_views=views, taps=(tap_of(config),))

    @classmethod
    def derive(cls, config: PLGCLConfig, facts: Facts) -> Filled[PLGCLConfig]:
        """Fill in what the contrast and self-training leave open."""
        filled = self_training.derive(config, facts)
        return filled.then(patch_term.derive(filled.config, facts))

    def networks(self) -> dict[str, nn.Module]:
        """Return the moving average of the student."""
        return {"teacher": self.teacher.module}

    def on_train_start(self, student_module: nn.Module) -> None:
        """The teacher starts as the student, pre-trained weights included."""
        self.teacher.copy_from(student_module)

    def compute(
        self, student: Student, batch: TwoStreamBatch, supervised_loss: SupervisedLoss, progress: Progress
    ) -> StepOutput:
        """L_sup during the warm-up, then L_sup + lambda_reg w(t) L_Reg + lambda_patch L_PLGCL."""
        if progress.fraction < self.config.supervised_warmup:
            supervised = supervised_loss(student(batch.labeled).logits, batch.target)
            zeros = dict.fromkeys(self.scalar_names, torch.zeros_like(supervised.detach()))
            return StepOutput(supervised, {**zeros, "supervised": supervised.detach()})

        n, strong = batch.n_labeled, self.strong(batch.unlabeled)
        images = torch.cat([batch.labeled, strong])
        logits, teacher_map = self._teacher(batch.image)
        classes = self._classes(batch, logits)
        drawn = lesson = None
        if self.patches is not None:
            windows = self.patches.windows_of(len(strong))
            probabilities = class_probabilities(logits, self.has_regions)
            drawn = self.patches.draw(probabilities, teacher_map, classes, windows)
            images = self.patches.with_windows(images, classes, drawn)
        contrasted = len(images)
        if self.self_training is not None:
            lesson = self.self_training.lesson(batch, strong, self._pseudo_logits(batch.unlabeled, logits[n:]))
            images = images if self.self_training.is_soft else torch.cat([images, lesson.images])
        output = student(images)

        supervised = supervised_loss(rows_of(output.logits, slice(0, n)), batch.target)
        loss, scalars, for_after_step = supervised, {"supervised": supervised.detach()}, {}
        if self.self_training is not None and lesson is not None:
            start = n if self.self_training.is_soft else contrasted
            taught = rows_of(output.logits, slice(start, start + len(lesson.images)))
            since = progress.fraction - self.config.supervised_warmup
            term, more = self.self_training.loss(taught, lesson, supervised_loss, since)
            loss, scalars = loss + term, {**scalars, **more}
        if self.patches is not None and drawn is not None:
            contrast, embeddings, own = self.patches(output.features[self.tap][:contrasted], classes, drawn)
            for_after_step = {"embeddings": embeddings, "classes": own}
            loss = loss + self.config.lambda_patch * contrast
            scalars["contrast"] = contrast.detach()
        return StepOutput(loss, scalars, for_after_step)

    def _pseudo_logits(self, images: Tensor, plain: Tensor) -> Tensor:
        """Return the logits of pseudo-labels; ``plain`` are the teacher's on the images as they are."""
        if not self.config.mirrored_teacher:
            return plain
        return teacher_logits(self.teacher, images, self.has_regions, mirrored=True)

    def after_step(
        self, student_module: nn.Module, batch: TwoStreamBatch, output: StepOutput, progress: Progress
    ) -> None:
        """Move the teacher, which is the student itself until the warm-up ends; queue the embeddings of windows."""
        since = progress.step - int(self.config.supervised_warmup * progress.total)
        self.teacher.update(student_module, ema_decay(max(0, since), self.config.ema_decay))
        if self.patches is not None:
            self.patches.after_step(output.for_after_step, progress.step)

    def snapshot(
        self, encode: Encode, images: Tensor, meta: Mapping[str, Tensor], fraction: float
    ) -> Mapping[str, Tensor]:
        """Pseudo-labels, their entropy, and the windows that are drawn from each image alone."""
        logits, teacher_map = self._teacher(images)
        probabilities = class_probabilities(logits, self.has_regions)
        classes = probabilities.argmax(dim=1)
        arrays = {
            "image": images[:, 0],
            "pseudo_label": classes,
            "entropy": binary_entropy(probabilities, self.config.entropy_bits).mean(dim=1),
        }
        if self.patches is None:
            return arrays
        return {**arrays, **self.patches.snapshot(probabilities, teacher_map, classes)}

    def _teacher(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits at full resolution, and the last map of the decoder."""
        logits = finest(self.teacher(images))
        return logits, self.teacher_taps.take()[MAP]

    def _classes(self, batch: TwoStreamBatch, teacher_logits: Tensor) -> Tensor:
        """Labels of labeled rows, the teacher's pseudo-labels of the others; (B, *S), -1 = ignored."""
        known = pixel_classes(batch.target, self.has_regions, self.ignore_label)
        guessed = class_probabilities(teacher_logits[batch.n_labeled :], self.has_regions).argmax(dim=1)
        return torch.cat([known, guessed])
