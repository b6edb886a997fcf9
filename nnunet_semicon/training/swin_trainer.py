"""Trains a shifted-window U-Net in the place of the planned network; nnU-Net's prediction finds it by its trainer."""

from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn
from torch.optim import Optimizer

from nnunet_semicon.configuration.architecture import SWIN
from nnunet_semicon.networks.swin_weights import load_swin_weights
from nnunet_semicon.training.networks import build_network
from nnunet_semicon.training.semi_trainer import SemiTrainer


class SwinTrainer(SemiTrainer):
    """Another network, without deep supervision."""

    network_of_plans = False

    def initialize(self) -> None:
        """Build the network without deep supervision: it has one output."""
        self.enable_deep_supervision = False
        super().initialize()

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Return a network whose sizes follow from those of the planned one."""
        return build_network(SWIN, configuration_manager, num_input_channels, num_output_channels, False)

    def configure_optimizers(self) -> tuple[Optimizer, Any]:
        """Load the weights that a new run starts from, before DDP wraps the network."""
        config: Any = self.resolved.config
        if config.swin_weights is not None and self._random_state is None:
            network: Any = self.plain_network
            count = load_swin_weights(network, config.swin_weights)
            self.print_to_log_file(f"{count} tensors of the encoder are those of {config.swin_weights}")
        return super().configure_optimizers()
