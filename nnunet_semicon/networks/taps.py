"""Features from inside the network, caught by forward hooks: the network itself stays the plain nnU-Net."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nnunet_semicon.errors import UserError

BOTTLENECK = "bottleneck"


def _bottleneck(network: Any) -> nn.Module:
    try:
        deepest: nn.Module = network.encoder.stages[-1]
    except AttributeError:
        raise UserError(
            f"the network {type(network).__name__} has no encoder.stages to take features from; expected one of "
            "nnU-Net's U-Nets (PlainConvUNet, ResidualEncoderUNet): use other plans"
        ) from None
    return deepest


LOCATIONS = {BOTTLENECK: _bottleneck}


def channels_at(network: Any, name: str) -> int:
    """Return the number of channels of a tap's features."""
    LOCATIONS[name](network)  # refuses a network without that place
    return int(network.encoder.output_channels[-1])


class FeatureTaps:
    """Catches the output of named places of a network during its forward pass.

    Attach the taps before the first call of a compiled network (later hooks are silently ignored), and after every
    ``deepcopy`` of it (copies carry hooks).

    Args:
        network: the plain network (neither compiled nor wrapped).
        names: keys of :data:`LOCATIONS`.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._caught: dict[str, Tensor] = {}
        for name in self.names:
            LOCATIONS[name](network).register_forward_hook(self._hook(name))

    def take(self) -> dict[str, Tensor]:
        """Return name -> (B, C, *S) of the latest forward pass and forget them.

        Raises:
            RuntimeError: a tap did not fire.
        """
        missing = [name for name in self.names if name not in self._caught]
        if missing:
            raise RuntimeError(f"no features at {missing}: the hooks did not fire in the forward pass")
        caught = dict(self._caught)
        self._caught.clear()
        return caught

    def _hook(self, name: str):  # type: ignore[no-untyped-def]
        def catch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._caught[name] = output

        return catch
