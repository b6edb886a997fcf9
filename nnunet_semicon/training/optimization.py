"""The optimizer of the network and the schedule of its learning rate, from the settings of the run."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RAdam

from nnunet_semicon.configuration.run import RunConfig
from nnunet_semicon.errors import UserError
from nnunet_semicon.training.schedule import LearningRates, warmup_cosine, warmup_poly

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": partial(SGD, momentum=0.99, nesterov=True),  # nnU-Net's own
    "adam": Adam,
    "adamw": AdamW,
    "radam": RAdam,
}
SCHEDULES = {"poly": warmup_poly, "cosine": warmup_cosine}


def make_optimizer(network: nn.Module, parameters: Iterable[nn.Parameter], run: RunConfig) -> Optimizer:
    """Return the optimizer of the network; its encoder is a group of its own only where its rate is another one.

    Args:
        network: the plain network, neither compiled nor wrapped.
        parameters: what is trained.
        run: settings of the run, filled.

    Raises:
        UserError: ``encoder_lr_factor`` is set for a network without an encoder.
    """
    groups: list[dict[str, Any]] = [{"params": list(parameters)}]
    if run.encoder_lr_factor != 1:
        encoder = getattr(network, "encoder", None)
        if encoder is None:
            raise UserError(
                f"encoder_lr_factor is {run.encoder_lr_factor:g}, but {type(network).__name__} has no encoder of its "
                "own: leave encoder_lr_factor out"
            )
        in_encoder = {id(parameter) for parameter in encoder.parameters()}
        rest = [parameter for parameter in groups[0]["params"] if id(parameter) not in in_encoder]
        first = [parameter for parameter in groups[0]["params"] if id(parameter) in in_encoder]
        groups = [{"params": rest}] if rest else []
        groups += [{"params": first, "lr": run.encoder_lr_factor * run.learning_rate}]
    return OPTIMIZERS[run.optimizer](groups, lr=run.learning_rate, weight_decay=run.weight_decay)


def make_schedule(optimizers: Sequence[Optimizer], run: RunConfig) -> LearningRates:
    """Return the schedule; nnU-Net's own changes between epochs, a warm-up or a cosine in every step."""
    every_step = run.warmup > 0 or run.lr_schedule == "cosine"
    rate = partial(SCHEDULES[run.lr_schedule], warmup=run.warmup)
    return LearningRates(optimizers, run.num_epochs, rate, every_step)
