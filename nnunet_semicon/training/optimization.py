"""Optimizers, their schedule, and one optimizer step: average over ranks, unscale, clip, step."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import GradScaler
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
MAX_GRADIENT_NORM = 12  # nnU-Net's own
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


def backward_and_step(
    loss: Tensor, optimizers: Sequence[Optimizer], scaler: GradScaler | None, unsynchronized: Sequence[nn.Parameter]
) -> None:
    """Differentiate the loss and move all parameters.

    Args:
        loss: ().
        optimizers: each parameter belongs to one of them.
        scaler: nnU-Net's scaling of the loss, on CUDA.
        unsynchronized: parameters whose gradients DDP does not average over ranks.
    """
    (loss if scaler is None else scaler.scale(loss)).backward()
    average_gradients(unsynchronized)
    if scaler is not None:
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
    # each group alone: NaN of one optimizer, whose step the scaler skips, must not reach the parameters of another
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], MAX_GRADIENT_NORM)
    for optimizer in optimizers:
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
    if scaler is not None:
        scaler.update()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average over ranks; before unscaling, so that all ranks skip the same steps.

    A parameter that has a gradient on some ranks alone has a zero on the others. One that has none anywhere keeps none:
    with zeros, weight decay would move it, which it does not in a single process.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not dist.is_initialized() or not trained:
        return
    reached = torch.tensor([parameter.grad is not None for parameter in trained], device=trained[0].device).int()
    dist.all_reduce(reached, dist.ReduceOp.MAX)
    for parameter, is_reached in zip(trained, reached.tolist(), strict=True):
        if is_reached:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
