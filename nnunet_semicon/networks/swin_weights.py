"""Weights of the Swin Transformer of the timm library for the encoder of our network, where sizes agree."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from nnunet_semicon.errors import UserError
from nnunet_semicon.networks.swin_unet import SwinUNet

# part of a name in timm -> ours
NAMES = {
    r"^layers\.(\d+)\.downsample\.norm": r"stages.\1.merge.norm",
    r"^layers\.(\d+)\.downsample\.reduction": r"stages.\1.merge.reduce",
    r"^layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table$": r"stages.\1.blocks.\2.attention.bias",
    r"^layers\.(\d+)\.blocks\.(\d+)\.attn\.proj": r"stages.\1.blocks.\2.attention.project",
    r"^layers\.(\d+)\.blocks\.(\d+)\.attn": r"stages.\1.blocks.\2.attention",
    r"^layers\.(\d+)\.blocks\.(\d+)": r"stages.\1.blocks.\2",
}


def load_swin_weights(network: SwinUNet, path: str) -> int:
    """Copy what fits into the encoder; tokens, decoder and output stay as they are.

    Args:
        network: receives the weights.
        path: a state dict, as ``torch.save(timm.create_model("swin_tiny_patch4_window7_224").state_dict(), path)``
            writes it.

    Returns:
        Number of tensors copied.

    Raises:
        UserError: the file is not there, is no state dict, or nothing in it fits.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the file provokes
        raise UserError(
            f"swin_weights: {path} cannot be read as a state dict ({error}): give a file of timm's"
        ) from None
    weights = stored.get("model", stored) if isinstance(stored, Mapping) else {}
    own = network.encoder.state_dict()
    fitting = {}
    for name, tensor in weights.items():
        ours = _our_name(name)
        if ours in own and isinstance(tensor, Tensor):
            tensor = _in_our_order(ours, tensor)
            if tensor.shape == own[ours].shape:
                fitting[ours] = tensor
    if not fitting:
        widths = ", ".join(map(str, network.encoder.output_channels))
        raise UserError(
            f"swin_weights: nothing in {path} fits this network (widths {widths}): expected the state dict of timm's "
            "swin_tiny_patch4_window7_224, and plans of 2d images"
        )
    network.encoder.load_state_dict({**own, **fitting})
    return len(fitting)


def _our_name(name: str) -> str:
    for pattern, replacement in NAMES.items():
        ours, found = re.subn(pattern, replacement, name)
        if found:
            return ours
    return ""


def _in_our_order(name: str, tensor: Tensor) -> Tensor:
    """Tokens of a 2 x 2 box are merged column by column in timm, row by row here."""
    if ".merge." not in name or tensor.shape[-1] % 4:
        return tensor
    return tensor.unflatten(-1, (2, 2, -1)).transpose(-3, -2).flatten(-3)
