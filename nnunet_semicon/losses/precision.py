"""Losses are computed in float32 at least, also under autocast: exp(-2 / 0.07) = 4e-13 underflows in float16."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off on ``device``; does nothing on a device type that has no autocast."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return half precision as float32 and anything else as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
