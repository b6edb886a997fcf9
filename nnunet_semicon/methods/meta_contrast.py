"""Self-paced contrast of images that share meta-labels: heads, queues and the sum over labels.

    L_SP = sum_k lambda_k L_SPcon^k                                                      (SP-Con supplement, eq. 14)

The joint method (:mod:`nnunet_semicon.methods.sp_con`) and the pre-training
(:mod:`nnunet_semicon.methods.sp_con_pretrain`) both own one :class:`MetaContrast`. Every variant of the paper is a
value of :class:`ContrastConfig`: ``regularizer`` hard, linear or none (plain meta-label contrast), any subset of labels
by ``lambda``, among them ``self`` (every image its own label: SimCLR).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from nnunet_semicon.configuration.config import Settings, Weights, open_setting, setting
from nnunet_semicon.configuration.derived import Derived, Filled
from nnunet_semicon.configuration.facts import FEW_EMBEDDINGS, Facts
from nnunet_semicon.errors import UserError
from nnunet_semicon.losses.contrastive import LOWEST_TEMPERATURE, pair_losses, supervised_contrast
from nnunet_semicon.losses.embedding_quality import alignment, uniformity
from nnunet_semicon.losses.pairs import OTHER, Pairs, masks, pairs_by_label
from nnunet_semicon.losses.schedules import power_schedule
from nnunet_semicon.losses.self_paced import SelfPaced, self_paced_contrasts, self_paced_weights, weight_quartiles
from nnunet_semicon.losses.streaming import Mode
from nnunet_semicon.meta_labels.table import OTHERS, SELF
from nnunet_semicon.methods.base import BuildContext, Needs, Show
from nnunet_semicon.methods.negatives import NegativesWatch
from nnunet_semicon.networks.ema import EmaTeacher
from nnunet_semicon.networks.heads import Projectors
from nnunet_semicon.networks.queue import EmbeddingQueue
from nnunet_semicon.networks.taps import encoder_tap

VIEWS = 2  # of every image
GAMMA_START = 0.49  # times the pair loss of embeddings that are all alike
# the weights of all pairs of images of two scans (supplement, Fig. 6)
SELF_PACING = Show("self_pacing", cases=2, per_case=12, moments=(0.25, 0.5, 0.75, 1.0))


CONTRAST_PAPER = {  # of the contrast, in both stages
    "lambda": Derived({"position": 1.0, "patient": 0.01, SELF: 0.0, OTHERS: 0.001}, "supplement 4.6"),
    "regularizer": Derived("linear", "poster, eq. 3"),
    "temperature": Derived(0.07, "supplement 3.2"),
    "gamma_start": Derived(2.0, "supplement, Table 4"),
    "gamma_end": Derived(50.0, "supplement, Table 4"),
    "gamma_exponent": Derived(0.5, "supplement 4.5"),
    "sampler": Derived("scans_x_partitions", "supplement 3.2"),
    "queue_size": Derived(0, "supplement: no queue"),
    "tap_level": Derived(0, "supplement 3.2"),
    "pool_grid": Derived(1, "supplement 3.2: global average"),
    "projection_dim": Derived(256, "supplement 3.2"),
    "shared_projector": Derived(False, "SP-Con's code"),
}


class ContrastConfig(Settings):
    """Hyper-parameters of the contrast."""

    lambda_: Weights = setting(
        {"position": 1.0, "patient": 0.01, SELF: 0.0, OTHERS: 0.001},
        "weight of each meta-label, also of columns of the meta table; self: each image its own label; 0 leaves it out",
        source="supplement 4.6",
        columns=True,
    )
    regularizer: Literal["linear", "hard", "none"] = setting(
        "linear", "self-paced weights; none: every pair counts fully", source="poster, eq. 3"
    )
    temperature: float = setting(0.07, "tau of the contrast", low=LOWEST_TEMPERATURE, source="supplement 3.2")
    gamma_start: float = open_setting("self-paced threshold at the start; null: derived", low=0)
    gamma_end: float = open_setting("self-paced threshold at the end; null: derived", low=0)
    gamma_exponent: float = setting(0.5, "p of the gamma schedule", low=0, source="supplement 4.5")
    sampler: Literal["scans_x_partitions", "random"] = setting(
        "scans_x_partitions",
        "which images a step draws: different partitions of a few scans, or any images",
        source="supplement 3.2",
    )
    queue_size: int = open_setting("teacher embeddings kept per meta-label; null: derived, 0: none", low=0)
    tap_level: int = setting(
        0, "stages above the bottleneck whose features are contrasted", low=0, source="supplement 3.2"
    )
    pool_grid: int = setting(
        2,
        "parts per axis that the features are averaged over; 1: the global average",
        low=1,
        source="ours; 1 in the paper",
    )
    projection_dim: int = setting(256, "dimension of an embedding", low=1, source="supplement 3.2")
    shared_projector: bool = setting(
        False, "one projector for all meta-labels instead of one for each", source="SP-Con's code"
    )


class Contrast(NamedTuple):
    """What :meth:`MetaContrast.forward` returns.

    Attributes:
        loss: () sum_k lambda_k L_SPcon^k, with the gradient of w l + R(w) and the value of w l.
        scalars: name -> () detached, for the curves.
    """

    loss: Tensor
    scalars: dict[str, Tensor]


def needs_of(needs: Needs, config: ContrastConfig) -> Needs:
    """Return what a method with this contrast asks of the trainer: sampler and tap are hyper-parameters."""
    is_by_scan = config.sampler == "scans_x_partitions"
    return replace(needs, sample_scans=is_by_scan, taps=(encoder_tap(config.tap_level),))


# --- rules -------------------------------------------------------------------------------------------------------


C = TypeVar("C", bound=ContrastConfig)


def derive(config: C, facts: Facts) -> Filled[C]:
    """Fill in the weights of the meta-labels there are, the size of the queue and the range of gamma.

    Raises:
        UserError: gamma would fall in the course of the run.
    """
    embeddings = VIEWS * facts.rows.images
    filled = (
        Filled(config)
        .replace(lambda_=label_weights(config.lambda_, facts.labels, facts.unusable))
        .fill(queue_size=queue_size(embeddings, facts.partitions))
    )
    if config.regularizer == "none":
        unused = Derived(None, "not used: every pair counts fully")
        return filled.fill(gamma_start=unused, gamma_end=unused)
    candidates = max(2, embeddings - 1 + filled.config.queue_size)
    filled = filled.fill(**gamma_range(candidates, config.temperature, config.regularizer))
    start, end = filled.config.gamma_start, filled.config.gamma_end
    if end < start:
        raise UserError(
            f"gamma_end is {end:g} and gamma_start {start:g}, expected a threshold that grows over the run: "
            "raise gamma_end or lower gamma_start"
        )
    return filled


def label_weights(weights: Mapping[str, float], labels: Sequence[str], unusable: Mapping[str, str]) -> Derived:
    """Weight of every meta-label that the data carries; those with weight 0 are left out.

    Args:
        weights: meta-label -> weight, as configured; ``others`` is the weight of every label that is not named.
        labels: meta-labels of the data; ``self`` needs none.
        unusable: meta-label -> why the data does not carry it.
    """
    value = {name: weights.get(name, weights[OTHERS]) for name in (*labels, SELF)}
    others = [name for name in labels if name not in weights]
    notes = [f"no {name}: {unusable[name]}" for name, weight in weights.items() if name in unusable and weight > 0]
    if others and weights[OTHERS] > 0:
        notes.append(f"{', '.join(others)} from the meta table with {weights[OTHERS]:g} each")
    return Derived({name: weight for name, weight in value.items() if weight > 0}, "; ".join(notes) or "all there")


def queue_size(embeddings_per_step: int, partition_count: int | None) -> Derived:
    """Entries of the FIFO queue of teacher embeddings; 0 where a step has embeddings enough."""
    if embeddings_per_step >= FEW_EMBEDDINGS:
        return Derived(0, f"{embeddings_per_step} embeddings in a step are enough (>= {FEW_EMBEDDINGS})")
    size = 32 * (partition_count or 3)
    return Derived(size, f"only {embeddings_per_step} embeddings in a step (< {FEW_EMBEDDINGS}): 32 per partition")


def gamma_range(candidates: int, temperature: float, mode: str) -> Mapping[str, Derived]:
    """Start and end of the self-paced threshold gamma.

    Args:
        candidates: entries in the denominator of one anchor, |A(i)| = 2N - 1 + queue.
        temperature: tau.
        mode: ``linear`` or ``hard``.

    The pair loss lies in (0, log(2N) + 2/tau] (SP-Con supplement, section 4.5). The factors reproduce the paper's best
    values, 2 and 50 at N = 30, tau = 0.07; hard weights end below the bound, or they would all be 1.
    """
    bound = math.log(candidates + 1) + 2 / temperature
    end = 1.53 if mode == "linear" else 0.9
    return {
        "gamma_start": Derived(
            GAMMA_START * math.log(candidates),
            f"{GAMMA_START} log({candidates}): scales with the loss of an untrained embedding",
        ),
        "gamma_end": Derived(
            end * bound, f"{end} (log {candidates + 1} + 2 / {temperature}): the bound of the pair loss"
        ),
    }


# --- the term ----------------------------------------------------------------------------------------------------


class MetaContrast(nn.Module):
    """Projectors, their moving average, queues, and the loss over all meta-labels and all ranks.

    Args:
        config: the hyper-parameters, filled.
        build: see :class:`~nnunet_semicon.methods.base.BuildContext`.

    Attributes:
        labels: the meta-labels that have a weight.
        tap: the place in the encoder whose features are contrasted.
        scalar_names: the keys of ``Contrast.scalars``.
        has_queue: whether teacher embeddings are needed (see :meth:`remember`).
        show: the weights, if :meth:`pair_weights` has anything to show.
    """

    queues: Any  # nn.ModuleList of EmbeddingQueue, one per label

    def __init__(self, config: ContrastConfig, build: BuildContext) -> None:
        super().__init__()
        self.config = config
        self.gather: Callable[[Tensor], Tensor] = build.gather
        self.weights: Mapping[str, float] = config.lambda_
        self.labels = tuple(self.weights)
        self.is_self_paced = config.regularizer != "none"
        self.mode: Mode = "hard" if config.regularizer == "hard" else "linear"
        self.tap = encoder_tap(config.tap_level)
        paced = ("pair_loss", "weight", "weight_q1", "weight_q2", "weight_q3") if self.is_self_paced else ()
        curves = ("contrast", *paced)
        self.show = SELF_PACING if self.is_self_paced and any(k != SELF for k in self.labels) else None
        self.scalar_names = ("gamma",) * self.is_self_paced + tuple(f"{c}_{k}" for k in self.labels for c in curves)

        self.heads = Projectors(
            self.labels,
            build.tap_channels[self.tap],
            build.spatial_dims,
            config.pool_grid,
            config.projection_dim,
            config.shared_projector,
        )
        size = config.queue_size
        self.has_queue = size > 0
        self.teacher_heads = EmaTeacher(self.heads) if self.has_queue else None
        self.queues = nn.ModuleList(EmbeddingQueue(size, config.projection_dim) for _ in self.labels)
        remedy = "raise batch_size or queue_size, or leave it out with `semicon configure ... --set lambda.{}=0`"
        self.negatives = NegativesWatch({f"meta-label '{k}'": remedy.format(k) for k in self.labels})

    def forward(self, features: Tensor, meta: Mapping[str, Tensor], fraction: float) -> Contrast:
        """Contrast the images of all ranks.

        Args:
            features: (2 B, C, *S) of this rank, tapped at ``tap``: the first views of its B images, then the second.
            meta: meta-label -> (B,) codes of these images.
            fraction: finished part of the run.
        """
        gamma = self.gamma(fraction)
        total = features.new_zeros((), dtype=torch.float32)
        scalars = {"gamma": torch.as_tensor(gamma)} if self.is_self_paced else {}
        embeddings = self.heads(features)
        for names in self.heads.groups:
            images = self.gather(_by_image(embeddings[names[0]]))
            anchors = _by_view(images)
            # labels that share a projector have the same embeddings, in their queues too
            queues = [self.queues[self.labels.index(k)] for k in names]
            candidates = torch.cat([anchors.float(), queues[0].embeddings])
            labels = [_numbers(images) if k == SELF else self.gather(meta[k]) for k in names]
            pairs = [pairs_by_label(own.repeat(VIEWS), q.labels) for own, q in zip(labels, queues, strict=True)]
            paced = self_paced_contrasts(candidates, pairs, self.config.temperature, gamma, self.mode)
            for k, own_pairs, term in zip(names, pairs, paced, strict=True):
                self.negatives.count(self.labels.index(k), own_pairs)
                total = total + self.weights[k] * _readable(term)
                scalars |= self._curves(k, candidates, own_pairs, term, gamma)
        return Contrast(total, scalars)

    def _curves(self, k: str, candidates: Tensor, pairs: Pairs, term: SelfPaced, gamma: float) -> dict[str, Tensor]:
        scalars = {f"contrast_{k}": term.weighted}
        if self.is_self_paced:
            scalars |= {f"pair_loss_{k}": term.unweighted, f"weight_{k}": term.mean_weight}
            quartiles = weight_quartiles(candidates, pairs, self.config.temperature, gamma, self.mode)
            scalars |= {f"weight_q{n}_{k}": quartile for n, quartile in enumerate(quartiles, 1)}
        return scalars

    def gamma(self, fraction: float) -> float:
        """The threshold at a fraction of the run (eq. 16); infinite without self-pacing, where every pair counts."""
        if not self.is_self_paced:
            return math.inf
        config = self.config
        return power_schedule(fraction, config.gamma_start, config.gamma_end, config.gamma_exponent)

    @torch.no_grad()
    def pair_weights(self, features: Tensor, meta: Mapping[str, Tensor], fraction: float) -> dict[str, Tensor]:
        """Return the weights that all pairs of N images would have, positive or not (supplement, Fig. 6).

        Args:
            features: (N, C, *S), one view of each image.
            meta: meta-label -> (N,) codes.
            fraction: finished part of the run.

        Returns:
            ``gamma`` () and, for every meta-label, ``weight_<label>`` (N, N) in [0, 1] and ``positive_<label>`` (N, N).
        """
        gamma = self.gamma(fraction)
        arrays = {"gamma": torch.as_tensor(gamma)}
        for k, embeddings in self.heads(features).items():
            if k == SELF:
                continue  # one view of each image has no positive pair
            pairs = pairs_by_label(meta[k])
            losses = pair_losses(embeddings, pairs, self.config.temperature)
            positive, candidate = masks(pairs)
            arrays[f"weight_{k}"] = self_paced_weights(losses, gamma, self.mode) * candidate
            arrays[f"positive_{k}"] = positive
        return arrays

    @torch.no_grad()
    def quality(self, features: Tensor, meta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return plain contrast (``loss``: sum_k lambda_k L_con^k), alignment and uniformity of every label.

        Args: as for :meth:`forward`; each rank its own images. Neither self-paced weights nor the queue take part:
        they change over the run.
        """
        scalars: dict[str, Tensor] = {}
        total = features.new_zeros((), dtype=torch.float32)
        for k, embeddings in self.heads(features).items():
            labels = _numbers(_by_image(embeddings)) if k == SELF else meta[k]
            pairs = pairs_by_label(labels.repeat(VIEWS))
            contrast = supervised_contrast(embeddings, pairs, self.config.temperature)
            total = total + self.weights[k] * contrast
            scalars |= {
                f"contrast_{k}": contrast,
                f"alignment_{k}": alignment(embeddings, pairs),
                f"uniformity_{k}": uniformity(embeddings, pairs),
            }
        return {"loss": total, **scalars}

    def on_train_start(self) -> None:
        """The teacher's projectors start as the student's."""
        if self.teacher_heads is not None:
            self.teacher_heads.copy_from(self.heads)

    @torch.no_grad()
    def remember(self, teacher_features: Tensor, meta: Mapping[str, Tensor], decay: float) -> None:
        """Move the teacher's projectors and queue its embeddings, the same ones on every rank; needs a queue.

        Args:
            teacher_features: (B, C, *S) of this rank's images, one view.
            meta: meta-label -> (B,) codes.
            decay: of the moving average, in [0, 1].
        """
        assert self.teacher_heads is not None
        self.teacher_heads.update(self.heads, decay)
        for queue, (k, embeddings) in zip(self.queues, self.teacher_heads(teacher_features).items(), strict=True):
            gathered = self.gather(embeddings.float())
            # to the images of a later step, all that are in the queue are others
            labels = queue.labels.new_full((len(gathered),), OTHER) if k == SELF else self.gather(meta[k])
            queue.push(gathered, labels)


def _by_image(embeddings: Tensor) -> Tensor:
    """(2 B, D), view after view, to (B, 2, D)."""
    return embeddings.unflatten(0, (VIEWS, -1)).transpose(0, 1)


def _by_view(embeddings: Tensor) -> Tensor:
    """(B, 2, D) to (2 B, D), view after view."""
    return embeddings.transpose(0, 1).flatten(0, 1)


def _numbers(images: Tensor) -> Tensor:
    """(B, ...) to (B,): every image is its own label."""
    return torch.arange(len(images), device=images.device)


def _readable(term: SelfPaced) -> Tensor:
    """The gradient of w l + R(w) with the value of w l: R moves with gamma alone and would bend the loss curve."""
    return term.loss - term.loss.detach() + term.weighted
