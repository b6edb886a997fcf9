"""Kinds of networks beside the planned one; those of nnU-Net have its stages, widths, kernels and strides."""

from collections.abc import Mapping
from typing import Any

from nnunet_semicon.errors import UserError

SWIN, PLAIN, RESIDUAL = "swin_unet", "plain_unet", "residual_encoder_unet"
CLASSES = {
    PLAIN: "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    RESIDUAL: "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
}
NEEDED = ("n_stages", "features_per_stage", "kernel_sizes", "strides")
PLAIN_CONVOLUTIONS = 2  # of each stage (nnU-Net's planner)
RESIDUAL_BLOCKS = (1, 3, 4, 6)  # of the first stages; 6 of all others (nnU-Net's planner for residual encoders)


def unet_architecture(kind: str, architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``architecture`` entry of a configuration for another kind of U-Net.

    Args:
        kind: ``plain_unet`` or ``residual_encoder_unet``.
        architecture: the planned entry.

    Raises:
        UserError: the plans do not say what its stages are.
    """
    name = CLASSES[kind]
    if architecture["network_class_name"] == name:
        return dict(architecture)
    kwargs = dict(architecture["arch_kwargs"])
    require_stages(architecture["network_class_name"], kwargs)
    for key in ("n_conv_per_stage", "n_blocks_per_stage"):
        kwargs.pop(key, None)
    stages = kwargs["n_stages"]
    if kind == PLAIN:
        kwargs["n_conv_per_stage"] = [PLAIN_CONVOLUTIONS] * stages
    else:
        kwargs["n_blocks_per_stage"] = [*RESIDUAL_BLOCKS, *[6] * stages][:stages]
    kwargs["n_conv_per_stage_decoder"] = [PLAIN_CONVOLUTIONS if kind == PLAIN else 1] * (stages - 1)
    return {**architecture, "network_class_name": name, "arch_kwargs": kwargs}


def require_stages(network_class_name: str, kwargs: Mapping[str, Any]) -> None:
    """Refuse plans from which no other network can be derived.

    Raises:
        UserError: names what is missing.
    """
    missing = [key for key in NEEDED if key not in kwargs]
    if missing:
        raise UserError(
            f"the plans name the network {network_class_name} without its {', '.join(missing)}, from which another "
            "network is derived: use plans of nnU-Net's U-Nets"
        )
