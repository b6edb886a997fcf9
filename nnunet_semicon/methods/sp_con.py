"""SP-Con: self-paced contrastive learning with meta-labels (Peng et al., NeurIPS 2021), joint training.

    L = L_sup + lambda_reg L_MT + lambda_sp sum_k lambda_k L_SPcon^k                     (supplement, eq. 15 with 14)

L_MT: consistency with a mean teacher (supplement, eq. 3). L_SPcon^k: contrast of image embeddings in which two images
are a positive pair if they share meta-label k (slice position, patient), each pair weighted by how well the network
already agrees with it (:mod:`nnunet_semicon.losses.self_paced`).

Deviations: L_sup is nnU-Net's Dice + cross-entropy; features are averaged over a grid and the projectors have an Adam
of their own, because nnU-Net has instance normalization and SGD; scans x partitions are sampled in the joint stage
too; where few embeddings fit in a step, contrast is also against a queue of teacher embeddings; gamma is updated every
step. They are listed in docs/methods/sp_con.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nnunet_semicon.configuration.config import setting
from nnunet_semicon.configuration.rules import SET, Derived, Facts, gamma_range, label_weights, queue_size
from nnunet_semicon.data.batch import TwoStreamBatch
from nnunet_semicon.errors import UserError
from nnunet_semicon.losses.consistency import sigmoid_mse, softmax_mse
from nnunet_semicon.losses.pairs import has_negatives, pairs_by_label
from nnunet_semicon.losses.schedules import ema_decay, power_schedule
from nnunet_semicon.losses.self_paced import SelfPaced, self_paced_contrast
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
from nnunet_semicon.networks.ema import EmaTeacher, segmentation_teacher
from nnunet_semicon.networks.heads import Projectors
from nnunet_semicon.networks.queue import EmbeddingQueue
from nnunet_semicon.networks.taps import BOTTLENECK, FeatureTaps

PATIENCE = 50  # steps without a negative pair before the run stops: contrast without negatives teaches nothing


@dataclass(frozen=True)
class SPConConfig:
    """Hyper-parameters of SP-Con."""

    lambda_sp: float = setting(5e-3, "weight of all contrastive terms", low=0, source="supplement 3.2 (ACDC)")
    lambda_reg: float = setting(
        1.0, "weight of the mean-teacher term", low=0, source="ours, not tuned; 0.1 in the paper"
    )
    lambda_: dict[str, float] = setting(
        {"position": 1.0, "patient": 0.01},
        "weight of each meta-label, also of columns of the meta table; 0 leaves it out",
        low=0,
        source="supplement 4.6",
    )
    weighting: str = setting("linear", "self-paced weights", choices=("linear", "hard"), source="poster, eq. 3")
    temperature: float = setting(0.07, "tau of the contrast", low=1e-3, source="supplement 3.2")
    gamma_start: float | None = setting(None, "self-paced threshold at the start; null: derived", low=0)
    gamma_end: float | None = setting(None, "self-paced threshold at the end; null: derived", low=0)
    gamma_exponent: float = setting(0.5, "p of the gamma schedule", low=0, source="supplement 4.5")
    queue_size: int | None = setting(None, "teacher embeddings kept per meta-label; null: derived, 0: none", low=0)
    pool_grid: int = setting(
        2,
        "parts per axis that the bottleneck is averaged over; 1: the global average",
        low=1,
        source="ours; 1 in the paper",
    )
    head_lr: float = setting(
        1e-3, "learning rate of the projectors' own optimizer (Adam)", low=0, source="ours; the paper has one RAdam"
    )
    projection_dim: int = setting(256, "dimension of an embedding", low=1, source="supplement 3.2")
    ema_decay: float = setting(
        0.99, "decay of the teacher's moving average", low=0, high=1, source="as for Mean Teacher; 0.999 in the paper"
    )


class SPCon(Method):
    """Supervised loss, mean teacher, and self-paced contrast of images that share a meta-label."""

    Config = SPConConfig
    needs = Needs(views=2, student_views=2, sample_scans=True, meta=True, taps=(BOTTLENECK,))
    cost = "a forward pass of the teacher on the unlabeled images, and the projectors"

    derived: Mapping[str, Derived]
    queues: Any  # nn.ModuleDict: meta-label -> EmbeddingQueue
    steps_without_negatives: Tensor

    def __init__(self, config: SPConConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        self.derived = build.derived
        self.weights: Mapping[str, float] = self.derived["lambda"].value
        self.labels = tuple(self.weights)
        of_labels = (f"{what}_{k}" for k in self.labels for what in ("contrast", "pair_loss", "weight"))
        self.scalar_names = ("supervised", "consistency", "gamma", *of_labels)

        self.teacher = segmentation_teacher(build.network)
        self.teacher_taps = FeatureTaps(self.teacher.module, (BOTTLENECK,))
        self.heads = Projectors(
            self.labels, build.tap_channels[BOTTLENECK], build.spatial_dims, config.pool_grid, config.projection_dim
        )
        self.teacher_heads = EmaTeacher(self.heads)
        self.queues = nn.ModuleDict(
            {k: EmbeddingQueue(self.derived["queue_size"].value, config.projection_dim) for k in self.labels}
        )
        self.consistency = sigmoid_mse if build.has_regions else softmax_mse
        self.register_buffer("steps_without_negatives", torch.zeros(len(self.labels), dtype=torch.int64))

    @classmethod
    def derive(cls, config: SPConConfig, facts: Facts) -> dict[str, Derived]:
        """Return the weights of the meta-labels there are, the size of the queue and the range of gamma."""
        embeddings = cls.needs.student_views * facts.rows.images
        derived = {
            "lambda": label_weights(config.lambda_, facts.labels, facts.unusable),
            "queue_size": _unless_set(config.queue_size, queue_size(embeddings, facts.partitions)),
        }
        candidates = max(2, embeddings - 1 + derived["queue_size"].value)
        gamma = gamma_range(candidates, config.temperature, config.weighting)
        derived["gamma_start"] = _unless_set(config.gamma_start, gamma["gamma_start"])
        derived["gamma_end"] = _unless_set(config.gamma_end, gamma["gamma_end"])
        return derived

    def on_train_start(self, student_module: nn.Module) -> None:
        """The teacher starts as the student, pre-trained weights included."""
        self.teacher.copy_from(student_module)
        self.teacher_heads.copy_from(self.heads)

    def compute(
        self, student: Student, batch: TwoStreamBatch, supervised_loss: SupervisedLoss, progress: Progress
    ) -> StepOutput:
        """L = L_sup + lambda_reg L_MT + lambda_sp sum_k lambda_k L_SPcon^k."""
        n, strong = batch.n_labeled, len(batch.image)
        output = student(torch.cat([batch.image, batch.views[0]]))
        teacher_logits = finest(self.teacher(batch.unlabeled))
        teacher_features = self.teacher_taps.take()[BOTTLENECK]

        supervised = supervised_loss(rows_of(output.logits, slice(0, n)), batch.target)
        consistency = self.consistency(finest(output.logits)[strong:], teacher_logits)
        gamma = power_schedule(
            progress.fraction,
            self.derived["gamma_start"].value,
            self.derived["gamma_end"].value,
            self.config.gamma_exponent,
        )
        embeddings = self.heads(output.features[BOTTLENECK][n:])
        terms = {k: self._contrast(k, embeddings[k], batch, gamma) for k in self.labels}
        contrast = sum((self.weights[k] * _readable(term) for k, term in terms.items()), supervised.new_zeros(()))

        scalars = {
            "supervised": supervised.detach(),
            "consistency": consistency.detach(),
            "gamma": torch.as_tensor(gamma),
            **{f"contrast_{k}": term.weighted for k, term in terms.items()},
            **{f"pair_loss_{k}": term.unweighted for k, term in terms.items()},
            **{f"weight_{k}": term.mean_weight for k, term in terms.items()},
        }
        loss = supervised + self.config.lambda_reg * consistency + self.config.lambda_sp * contrast
        return StepOutput(loss, scalars, {"teacher_features": teacher_features})

    def after_step(
        self, student_module: nn.Module, batch: TwoStreamBatch, output: StepOutput, progress: Progress
    ) -> None:
        """Move the teacher, queue its embeddings, stop a run whose contrast has had no negatives for long."""
        decay = ema_decay(progress.step, self.config.ema_decay)
        self.teacher.update(student_module, decay)
        self.teacher_heads.update(self.heads, decay)
        embeddings = self.teacher_heads(output.carry["teacher_features"])
        for k in self.labels:
            self.queues[k].push(embeddings[k], batch.meta[k][batch.n_labeled :])
        if progress.step % PATIENCE == PATIENCE - 1:
            self._stop_without_negatives()

    def optimizers(self) -> list[Optimizer]:
        """Adam for the projectors: unlike those of SGD, its steps do not shrink with the weight of a term."""
        if not self.labels:
            return []
        # the gradient of a weak label is smaller than Adam's usual eps
        return [torch.optim.Adam(self.heads.parameters(), self.config.head_lr, eps=1e-12)]

    def _contrast(self, k: str, embeddings: Tensor, batch: TwoStreamBatch, gamma: float) -> SelfPaced:
        """L_SPcon^k of the student's embeddings, both views, against each other and the queue."""
        labels = batch.meta[k][batch.n_labeled :].repeat(self.needs.student_views)
        queue = self.queues[k]
        pairs = pairs_by_label(labels, queue.labels)
        missing = ~has_negatives(pairs)
        index = self.labels.index(k)
        self.steps_without_negatives[index] = (self.steps_without_negatives[index] + 1) * missing
        candidates = torch.cat([embeddings.float(), queue.embeddings])
        return self_paced_contrast(embeddings, candidates, pairs, self.config.temperature, gamma, self.config.weighting)

    def _stop_without_negatives(self) -> None:
        for k, steps in zip(self.labels, self.steps_without_negatives.tolist(), strict=True):
            if steps >= PATIENCE:
                raise UserError(
                    f"the contrastive term of meta-label '{k}' has had no negative pair for {steps} steps, so it "
                    f"teaches nothing: raise batch_size or queue_size, or leave it out with "
                    f"`semicon configure ... --set lambda.{k}=0`"
                )


def _unless_set(value: Any, derived: Derived) -> Derived:
    return derived if value is None else Derived(value, SET)


def _readable(term: SelfPaced) -> Tensor:
    """The gradient of w l + R(w) with the value of w l: R moves with gamma alone and would bend the loss curve."""
    return term.loss - term.loss.detach() + term.weighted
