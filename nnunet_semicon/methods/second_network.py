"""A second network that trains beside the student, with an optimizer of its own, and what the two teach each other."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeVar

from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from nnunet_semicon.configuration.architecture import SWIN
from nnunet_semicon.configuration.config import Settings, open_setting, setting
from nnunet_semicon.configuration.derived import Derived, Filled
from nnunet_semicon.data.batch import TwoStreamBatch
from nnunet_semicon.errors import UserError
from nnunet_semicon.methods.base import BuildContext, Logits, StudentOutput, SupervisedLoss, finest, rows_of
from nnunet_semicon.networks.precision import in_float32
from nnunet_semicon.networks.swin_unet import SwinUNet
from nnunet_semicon.networks.swin_weights import load_swin_weights
from nnunet_semicon.networks.taps import FeatureTaps

ADAMW_DECAY = 5e-4  # MCSC's code
WARMUP = 0.05  # part of the run over which a Transformer's learning rate grows (MCSC's code)


class SecondNetworkConfig(Settings):
    """Hyper-parameters of the second network."""

    second_network: Literal["swin_unet", "plain_unet", "residual_encoder_unet"] = setting(
        SWIN,
        "network that trains beside the planned one: a shifted-window Transformer, or one of nnU-Net's U-Nets",
        source="MCSC, cross teaching: a Transformer",
    )
    second_learning_rate: float = open_setting(
        "largest learning rate of the second network; null: derived from its kind", low=0
    )
    swin_weights: str | None = setting(
        None, "file with the weights of timm's swin_tiny_patch4_window7_224 to start a Transformer from; null: random"
    )


C = TypeVar("C", bound=SecondNetworkConfig)


def derive(config: C) -> Filled[C]:
    """Fill in the learning rate of the second network; random weights have further to go than trained ones."""
    if config.second_network != SWIN:
        rate = Derived(1e-2, "nnU-Net's own, for its networks")
    elif config.swin_weights is not None:
        rate = Derived(1e-4, "AdamW for a Transformer that was trained before, MCSC's script")
    else:
        rate = Derived(1e-3, "AdamW for a Transformer with random weights")
    return Filled(config).fill(second_learning_rate=rate)


class BothLosses(NamedTuple):
    """Losses of student and second network, () each.

    Attributes:
        supervised, supervised_second: nnU-Net's loss on the labeled rows.
        cross, cross_second: with the hard prediction of the other network on the unlabeled rows.
    """

    supervised: Tensor
    supervised_second: Tensor
    cross: Tensor
    cross_second: Tensor

    def total(self, cross_weight: float) -> Tensor:
        """L_sup + cross_weight L_cps of both networks."""
        return self.supervised + self.supervised_second + cross_weight * (self.cross + self.cross_second)

    def scalars(self) -> dict[str, Tensor]:
        """Name -> detached value."""
        return {name: value.detach() for name, value in self._asdict().items()}


def losses_of_both(
    logits: Logits,
    second_logits: Logits,
    batch: TwoStreamBatch,
    supervised_loss: SupervisedLoss,
    cross_loss: Callable[[Tensor, Tensor, bool], Tensor],
    has_regions: bool,
) -> BothLosses:
    """Return what both networks learn from labels and from each other.

    Args:
        logits: of the student on all rows of the batch.
        second_logits: of the second network on the same rows.
        batch: labeled rows first.
        supervised_loss: nnU-Net's.
        cross_loss: own logits, logits of the other, regions -> ().
        has_regions: channels are regions instead of classes.
    """
    n = batch.n_labeled
    first, second = finest(logits)[n:], finest(second_logits)[n:]
    return BothLosses(
        supervised_loss(rows_of(logits, slice(0, n)), batch.target),
        supervised_loss(rows_of(second_logits, slice(0, n)), batch.target),
        cross_loss(first, second, has_regions),
        cross_loss(second, first, has_regions),
    )


class SecondNetwork(nn.Module):
    """The network, its taps, and its optimizer.

    Args:
        config: the hyper-parameters, filled.
        build: see :class:`~nnunet_semicon.methods.base.BuildContext`.
        taps: places whose features are returned.
    """

    def __init__(self, config: SecondNetworkConfig, build: BuildContext, taps: Sequence[str] = ()) -> None:
        super().__init__()
        self.network = build.new_network(config.second_network)
        self.taps = FeatureTaps(self.network, taps)
        if config.swin_weights is not None and not isinstance(self.network, SwinUNet):
            raise UserError(
                f"swin_weights are those of a Transformer, and second_network is {config.second_network}: set "
                f"second_network={SWIN}, or leave swin_weights away"
            )
        self.swin_weights = config.swin_weights
        self.learning_rate = config.second_learning_rate

    def forward(self, images: Tensor) -> StudentOutput:
        """Map (B, C, *S) to logits, at full resolution alone or at the deep-supervision scales, and features."""
        return StudentOutput(in_float32(self.network(images)), self.taps.take())

    def on_train_start(self) -> None:
        """Fill a Transformer with the weights that a new run starts from, where a file of them is named.

        Raises:
            UserError: see :func:`~nnunet_semicon.networks.swin_weights.load_swin_weights`.
        """
        if self.swin_weights is not None and isinstance(self.network, SwinUNet):
            load_swin_weights(self.network, self.swin_weights)

    def optimizer(self) -> Optimizer:
        """AdamW with a warm-up for a Transformer, nnU-Net's SGD otherwise."""
        parameters = list(self.network.parameters())
        if isinstance(self.network, SwinUNet):
            return AdamW([{"params": parameters, "warmup": WARMUP}], lr=self.learning_rate, weight_decay=ADAMW_DECAY)
        return SGD(parameters, lr=self.learning_rate, momentum=0.99, nesterov=True, weight_decay=3e-5)
