"""The memory that rows are planned for: that of the smallest GPU of a training."""

from typing import Any

import torch
import torch.distributed as dist


def memory_of(device: torch.device) -> float | None:
    """Return the bytes of a GPU; None for other devices, and where there is no GPU.

    Main memory is not scarce, and not what nnU-Net plans for.
    """
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    return float(torch.cuda.get_device_properties(device).total_memory)


def smallest_over_ranks(memory: float | None) -> float | None:
    """Return the least memory of all ranks in bytes, the same on every rank; None: no rank knows its own.

    Args:
        memory: of this rank's device in bytes.
    """
    known: list[Any] = [memory]
    if dist.is_available() and dist.is_initialized():
        known = [None] * dist.get_world_size()
        dist.all_gather_object(known, memory)
    return min((value for value in known if value is not None), default=None)
