"""Mixed precision of a training step: nnU-Net's own on CUDA, bfloat16 on a CPU where the user asks for it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

BFLOAT16 = "bfloat16"


def autocast(device: str, precision: str) -> AbstractContextManager[Any]:
    """Return the context of a step's forward passes.

    Args:
        device: ``cpu``, ``cuda`` or ``mps``.
        precision: ``float32`` or ``bfloat16``, the key of the run; it concerns a CPU alone.
    """
    if device == "cuda":
        return torch.autocast("cuda")
    if device == "cpu" and precision == BFLOAT16:
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return nullcontext()


def remark(device: str, precision: str, has_instructions: bool | None) -> str | None:
    """Return what a user of ``bfloat16`` should know about this machine; None: nothing.

    Args:
        device: ``cpu``, ``cuda`` or ``mps``.
        precision: the key of the run.
        has_instructions: whether the processor multiplies in bfloat16; None: not known.
    """
    if precision != BFLOAT16:
        return None
    if device != "cpu":
        return f"precision: bfloat16 changes nothing on {device}; nnU-Net's own precision is used"
    if has_instructions is False:
        return "precision: this processor has no bfloat16 instructions; float32 may be faster"
    return None
