"""nnU-Net's loss as methods call it: with a weight per pixel, and with a target at full resolution alone."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from torch import Tensor, nn
from torch._dynamo import OptimizedModule

from nnunet_semicon.errors import UserError
from nnunet_semicon.losses.masked import weighted_dice_ce
from nnunet_semicon.methods.base import Logits


class NnunetLoss:
    """The loss that nnU-Net's trainer built; a :class:`~nnunet_semicon.methods.base.SupervisedLoss`.

    Without a weight nnU-Net's own object is called. With one, the same formula is computed by
    :func:`~nnunet_semicon.losses.masked.weighted_dice_ce`, with the settings of that object.

    Args:
        loss: nnU-Net's, with or without its sum over deep-supervision scales; may be that of a user's ``_build_loss``.
        ignore_label: of the dataset, or None.
    """

    def __init__(self, loss: nn.Module, ignore_label: int | None) -> None:
        self.loss = loss
        self.ignore_label = ignore_label
        self.at_one_scale: Any = loss
        self.factors: tuple[float, ...] | None = None  # of the scales
        if isinstance(loss, DeepSupervisionWrapper):
            self.at_one_scale, self.factors = loss.loss, loss.weight_factors

    def __call__(self, logits: Logits, target: Tensor | list[Tensor], weight: Tensor | None = None) -> Tensor:
        """Return the loss; see :class:`~nnunet_semicon.methods.base.SupervisedLoss`."""
        if weight is not None:
            self._refuse_other_formulas()
        if isinstance(logits, Tensor):
            return self._of_one_scale(logits, target if isinstance(target, Tensor) else target[0], weight)
        targets = self._at_scales_of(logits, target) if isinstance(target, Tensor) else target
        if weight is None:
            value: Tensor = self.loss(logits, targets)
            return value
        weights = self._at_scales_of(logits, weight[:, None])
        factors = self.factors or (1.0,)  # without nnU-Net's sum there is one scale
        scales = zip(factors, logits, targets, weights, strict=True)
        terms = [factor * self._of_one_scale(z, y, w[:, 0]) for factor, z, y, w in scales if factor]
        return sum(terms[1:], terms[0])

    def _at_scales_of(self, logits: Sequence[Tensor], maps: Tensor) -> list[Tensor]:
        """Resize (B, C, *S) to every scale as nnU-Net's augmentation does; scales without a factor are left as is."""
        factors = self.factors or (1.0,) * len(logits)
        return [resized(maps, z.shape[2:]) if factor else maps for factor, z in zip(factors, logits, strict=True)]

    def _of_one_scale(self, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        if weight is None:
            value: Tensor = self.at_one_scale(logits, target)
            return value
        loss, dice = self.at_one_scale, _plain(self.at_one_scale.dc)
        return weighted_dice_ce(
            logits,
            target,
            weight,
            has_regions=isinstance(loss, DC_and_BCE_loss),
            ignore_label=self.ignore_label,
            batch_dice=dice.batch_dice,
            do_bg=dice.do_bg,
            smooth=dice.smooth,
            weight_ce=loss.weight_ce,
            weight_dice=loss.weight_dice,
            gather_sums=AllGatherGrad.apply if dice.ddp else None,
        )

    def _refuse_other_formulas(self) -> None:
        """Raise a UserError where a weight per pixel would change more than the weights."""
        if not is_dice_and_cross_entropy(self.at_one_scale):
            raise UserError(
                f"the trainer's loss {_in_words(self.at_one_scale)} takes no weight per pixel; expected nnU-Net's own "
                "Dice and cross-entropy, without class weights or label smoothing: remove _build_loss from the trainer"
            )


def is_dice_and_cross_entropy(loss: Any) -> bool:
    """Whether ``loss``, of one scale, is nnU-Net's default for classes or regions, its terms weighted in any way."""
    if type(loss) not in (DC_and_CE_loss, DC_and_BCE_loss) or type(_plain(loss.dc)) is not MemoryEfficientSoftDiceLoss:
        return False
    ce = loss.ce
    if type(loss) is DC_and_BCE_loss:
        return type(ce) is nn.BCEWithLogitsLoss and ce.weight is None and ce.pos_weight is None
    return type(ce) is RobustCrossEntropyLoss and ce.weight is None and bool(ce.label_smoothing == 0)


def resized(maps: Tensor, shape: Sequence[int]) -> Tensor:
    """Return (B, C, *S) at another resolution, of the same dtype, each pixel that of the nearest place."""
    if maps.shape[2:] == tuple(shape):
        return maps
    return F.interpolate(maps.float(), tuple(shape), mode="nearest-exact").to(maps.dtype)


def _plain(module: Any) -> Any:
    """Return the module without the wrapper of torch.compile, which nnU-Net puts around its Dice."""
    return module._orig_mod if isinstance(module, OptimizedModule) else module


def _in_words(loss: nn.Module) -> str:
    parts = ", ".join(type(_plain(part)).__name__ for part in loss.children())
    return f"{type(loss).__name__}({parts})"
