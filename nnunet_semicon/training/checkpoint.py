"""Checkpoints: nnU-Net's own file with one extra key, written atomically, every tensor on the CPU."""

import random
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nnunet_semicon.files import replacing

KEY = "semicon"
STUDENT, TEACHER = "student", "teacher"


def to_cpu(value: Any) -> Any:
    """Copy every tensor inside nested dicts, lists and tuples to the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: to_cpu(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_cpu(entry) for entry in value)
    return value


def save_with_extra(
    write_stock: Callable[[BytesIO], None], extra: dict[str, Any], filename: str, teacher_predicts: bool = False
) -> None:
    """Write what nnU-Net writes, and ``extra`` under one more key, to ``filename``.

    nnU-Net's own code writes into memory, so that its format is never copied here; the file appears at once or not at
    all.

    Args:
        write_stock: nnU-Net's ``save_checkpoint`` taking a file-like object.
        extra: tensors and plain containers only.
        filename: target.
        teacher_predicts: nnU-Net's entry ``network_weights`` holds the teacher of ``extra``, and ``extra`` the student.
    """
    buffer = BytesIO()
    write_stock(buffer)
    buffer.seek(0)
    checkpoint = torch.load(buffer, map_location="cpu", weights_only=False)
    checkpoint[KEY] = to_cpu(extra)
    if teacher_predicts:
        checkpoint[KEY][STUDENT] = checkpoint["network_weights"]
        checkpoint["network_weights"] = weights_of(checkpoint, TEACHER)
    with replacing(filename) as (temporary,):
        torch.save(checkpoint, temporary)


def random_state() -> dict[str, Any]:
    """Return the state of python's, numpy's and torch's generators as tensors and plain containers."""
    version, internal, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=True)
    algorithm, keys, position, has_gauss, cached = numpy_state
    return {
        "python": [version, list(internal), gauss],
        "numpy": [algorithm, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what :func:`random_state` returned; CUDA states only where as many devices exist."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    algorithm, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((algorithm, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


EARLIER = {TEACHER: "teacher.module.", "second": "second.network."}  # of checkpoints that do not name networks


def prefixes(method: nn.Module, networks: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return network -> how the names of its tensors begin among those of the method."""
    names = {id(module): name for name, module in method.named_modules()}
    return {network: f"{names[id(module)]}." for network, module in networks.items()}


def weights_of(checkpoint: dict[str, Any], network: str) -> dict[str, torch.Tensor]:
    """Return the weights of one network of a checkpoint of ours; the student is in those of nnU-Net too.

    Args:
        checkpoint: loaded.
        network: ``student``, ``teacher`` for the moving average, ``second`` for the network beside the student.

    Raises:
        KeyError: the method has no such network.
    """
    if network == STUDENT:
        return dict(checkpoint.get(KEY, {}).get(STUDENT, checkpoint["network_weights"]))
    prefix, method = checkpoint[KEY].get("networks", EARLIER)[network], checkpoint[KEY]["method"]
    weights = {name.removeprefix(prefix): value for name, value in method.items() if name.startswith(prefix)}
    if not weights:
        raise KeyError(network)
    return weights


def predicts_with(checkpoint: dict[str, Any]) -> str:
    """Return the network that nnU-Net predicts with, and validates: ``student`` or ``teacher``."""
    return TEACHER if STUDENT in checkpoint.get(KEY, {}) else STUDENT


def validation_folder(fold: Path, checkpoint: dict[str, Any], network: str) -> Path:
    """Return where the validation of a network of a checkpoint lies: that of the others has folders of their own."""
    return (fold if network == predicts_with(checkpoint) else fold / network) / "validation"


def exported(checkpoint: dict[str, Any], network: str, trainer: str) -> dict[str, Any]:
    """Return the part of a checkpoint that the stock predictor needs, with the weights of one network.

    Args:
        checkpoint: a loaded checkpoint of ours.
        network: as for :func:`weights_of`.
        trainer: whose ``build_network_architecture`` builds it.

    Raises:
        KeyError: the method has no such network.
    """
    kept = ("init_args", "inference_allowed_mirroring_axes", "current_epoch", "logging", "_best_ema")
    weights = weights_of(checkpoint, network)
    return {**{key: checkpoint[key] for key in kept}, "network_weights": weights, "trainer_name": trainer}
