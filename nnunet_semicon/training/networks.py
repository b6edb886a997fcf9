"""Networks other than the planned one, built from the plans."""

from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn

from nnunet_semicon.configuration.architecture import SWIN, require_stages, unet_architecture
from nnunet_semicon.networks.swin_unet import SwinUNet, plan_swin


def build_network(
    kind: str, configuration: ConfigurationManager, in_channels: int, out_channels: int, deep_supervision: bool
) -> nn.Module:
    """Return a network with random weights.

    Args:
        kind: ``swin_unet``, ``plain_unet`` or ``residual_encoder_unet``.
        configuration: of the plans.
        in_channels: of the image.
        out_channels: classes, background included, or regions.
        deep_supervision: whether it returns logits at several scales; a Transformer never does.

    Raises:
        UserError: the plans do not say what the planned network's stages are.
    """
    if kind == SWIN:
        kwargs = configuration.network_arch_init_kwargs
        require_stages(configuration.network_arch_class_name, kwargs)
        plan = plan_swin(kwargs["features_per_stage"], kwargs["strides"])
        return SwinUNet(in_channels, out_channels, plan)
    architecture = unet_architecture(kind, configuration.configuration["architecture"])
    network: nn.Module = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        in_channels,
        out_channels,
        allow_init=True,
        deep_supervision=deep_supervision,
    )
    return network
