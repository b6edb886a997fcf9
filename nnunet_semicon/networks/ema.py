"""The teacher: an exponential moving average of a module."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from nnunet_semicon.networks.precision import in_float32


class EmaTeacher(nn.Module):
    """A frozen copy of a module that follows it: ``teacher = decay * teacher + (1 - decay) * student``.

    Buffers (batch-norm statistics) are copied, parameters averaged. The copy is in evaluation mode and never receives
    a gradient. Build it before hooks are attached to the module: ``deepcopy`` carries them.

    Args:
        module: the student, neither compiled nor wrapped.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = deepcopy(module).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "EmaTeacher":
        """Stay in evaluation mode, whatever the owner is set to."""
        return super().train(False)

    @torch.no_grad()
    def copy_from(self, student: nn.Module) -> None:
        """Make the teacher equal to the student."""
        self.module.load_state_dict(student.state_dict())

    @torch.no_grad()
    def update(self, student: nn.Module, decay: float) -> None:
        """Move the teacher towards the student; ``decay`` in [0, 1]."""
        own, new = list(self.module.parameters()), list(student.parameters())
        if own:
            get_ema_multi_avg_fn(decay)(own, new, 0)
        for own_buffer, new_buffer in zip(self.module.buffers(), student.buffers(), strict=True):
            own_buffer.copy_(new_buffer)

    @torch.no_grad()
    def forward(self, *args: Any) -> Any:
        """Run the averaged module without a gradient; its output holds no bfloat16."""
        return in_float32(self.module(*args))


def segmentation_teacher(network: nn.Module) -> EmaTeacher:
    """Return a teacher of a segmentation network; its deep-supervision heads are off: only the finest logits count."""
    teacher = EmaTeacher(network)
    decoder: Any = getattr(teacher.module, "decoder", None)
    if hasattr(decoder, "deep_supervision"):
        decoder.deep_supervision = False
    return teacher
