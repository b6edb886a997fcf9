"""Weights of the Swin Transformer of the timm library for the encoder of our network, where sizes agree."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from nnunet_semicon.errors import UserError
from nnunet_semicon.networks.swin_unet import SwinUNet

TOKENS = "stages.0.merge"
# part of a name in timm -> ours
NAMES = {
    r"^patch_embed\.proj": f"{TOKENS}.project",
    r"^patch_embed\.norm": f"{TOKENS}.norm",
    r"^layers\.(\d+)\.downsample\.norm": r"stages.\1.merge.norm",
    r"^layers\.(\d+)\.downsample\.reduction": r"stages.\1.merge.reduce",
    r"^layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table$": r"stages.\1.blocks.\2.attention.bias",
    r"^layers\.(\d+)\.blocks\.(\d+)\.attn\.proj": r"stages.\1.blocks.\2.attention.project",
    r"^layers\.(\d+)\.blocks\.(\d+)\.attn": r"stages.\1.blocks.\2.attention",
    r"^layers\.(\d+)\.blocks\.(\d+)": r"stages.\1.blocks.\2",
}


def load_swin_weights(network: SwinUNet, path: str) -> int:
    """Copy what fits into the encoder; decoder and output stay as they are. A gray image passes as its three colors.

    Args:
        network: receives the weights.
        path: a state dict, as ``torch.save(timm.create_model("swin_tiny_patch4_window7_224").state_dict(), path)``
            writes it.

    Returns:
        Number of tensors copied.

    Raises:
        UserError: the network is 3d, the file is not there, is no state dict, or nothing in it fits.
    """
    own = network.encoder.state_dict()
    if own[f"{TOKENS}.project.weight"].dim() != 4:
        raise UserError(
            f"swin_weights: {path} would be weights of a 2d network, and this one is 3d: leave swin_weights away"
        )
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the file provokes
        raise UserError(
            f"swin_weights: {path} cannot be read as a state dict ({error}): give a file of timm's"
        ) from None
    weights = stored.get("model", stored) if isinstance(stored, Mapping) else {}
    fitting = {}
    for name, tensor in weights.items():
        ours = _our_name(name)
        if ours in own and isinstance(tensor, Tensor):
            tensor = _as_ours(ours, tensor, own[ours].shape)
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


def _as_ours(name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    """Add up the filters of colors for a gray image; merge row by row the tokens that timm merges column by column."""
    if name == f"{TOKENS}.project.weight" and shape[1] == 1 and tensor.dim() == len(shape):
        return tensor.sum(dim=1, keepdim=True)
    if ".merge." in name and not name.startswith(TOKENS) and tensor.shape[-1] % 4 == 0:
        return tensor.unflatten(-1, (2, 2, -1)).transpose(-3, -2).flatten(-3)
    return tensor
