"""bfloat16 stays inside a network: losses, queues and comparisons get float32."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def in_float32(output: Any) -> Any:
    """Return the output of a network with its bfloat16 tensors as float32; everything else is returned as it is.

    bfloat16 comes from autocast on a CPU. The float16 of CUDA stays: nnU-Net gives it to its own losses.

    Args:
        output: a tensor, or a list, a tuple or a mapping of outputs.
    """
    if isinstance(output, Tensor):
        return output.float() if output.dtype is torch.bfloat16 else output
    if isinstance(output, Mapping):
        return {name: in_float32(value) for name, value in output.items()}
    if isinstance(output, list | tuple):
        return type(output)(in_float32(value) for value in output)
    return output
