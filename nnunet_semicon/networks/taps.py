"""Features from inside the network, caught by forward hooks: the network itself stays the plain nnU-Net."""

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nnunet_semicon.errors import UserError
from nnunet_semicon.networks.precision import in_float32


def encoder_tap(above: int = 0) -> str:
    """Return the name of the tap ``above`` stages above the bottleneck of the encoder."""
    return f"encoder[-{above + 1}]"


def decoder_tap(level: int = 0) -> str:
    """Return the name of the tap at a level of the decoder: 0 is its last map, at full resolution."""
    return f"decoder[-{level + 1}]"


BOTTLENECK = encoder_tap()


def level_tap(level: int) -> str:
    """Return the name of the tap at the decoder's map whose resolution is nearest to a level of the planned network.

    nnU-Net's decoders have a map at every level but that of the bottleneck; a Transformer's has none between its tokens
    and full resolution.
    """
    return f"level[{level}]"


def stage_of(name: str) -> int:
    """Return the index of a tap's stage among those of its part, counted from the end: -1 is the last to run."""
    return _parsed(name)[1]


def _parsed(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"(encoder|decoder)\[(-\d+)\]|(level)\[(\d+)\]", name)
    if match is None:
        raise ValueError(f"no tap is called {name!r}, expected 'encoder[-1]', 'decoder[-1]', 'level[0]', ...")
    return (match[1], int(match[2])) if match[1] else (match[3], int(match[4]))


def _part_and_stage(network: Any, name: str) -> tuple[str, int]:
    """Part of the network, and index of the stage counted from its end."""
    part, stage = _parsed(name)
    if part != "level":
        return part, stage
    decoder = getattr(network, "decoder", None)
    stages = getattr(decoder, "stages", [None])  # a network without them is refused where its stage is looked up
    levels = getattr(decoder, "levels", range(len(stages) - 1, -1, -1))
    return "decoder", min(range(-1, -len(stages) - 1, -1), key=lambda i: abs(levels[i] - stage))


def _location(network: Any, name: str) -> nn.Module:
    part, stage = _part_and_stage(network, name)
    try:
        stages = getattr(network, part).stages
    except AttributeError:
        raise UserError(
            f"the network {type(network).__name__} has no {part}.stages to take features from; expected one of "
            "nnU-Net's U-Nets (PlainConvUNet, ResidualEncoderUNet): use other plans"
        ) from None
    if len(stages) < -stage:
        where = "above the bottleneck" if part == "encoder" else "below the full resolution"
        key = "tap_level" if part == "encoder" else "level of level_weight"
        raise UserError(
            f"features are asked for {-stage - 1} stages {where}, but the {part} has {len(stages)} "
            f"stages: choose a {key} of at most {len(stages) - 1}"
        )
    location: nn.Module = stages[stage]
    return location


def channels_at(network: Any, name: str) -> int:
    """Return the number of channels of a tap's features.

    Raises:
        UserError: the network has no such place.
    """
    _location(network, name)
    part, stage = _part_and_stage(network, name)
    if part == "decoder" and hasattr(network.decoder, "output_channels"):
        return int(network.decoder.output_channels[stage])
    # a stage of nnU-Net's decoders has the width of the encoder's stage at its resolution
    return int(network.encoder.output_channels[stage if part == "encoder" else -stage - 1])


def parameters_up_to(network: Any, names: Sequence[str]) -> list[nn.Parameter]:
    """Return the parameters that the features of some taps depend on.

    Raises:
        UserError: the network has no such place.
    """
    for name in names:
        _location(network, name)
    places = [_part_and_stage(network, name) for name in names]
    part = "decoder" if any(part == "decoder" for part, _ in places) else "encoder"
    stages = getattr(network, part).stages
    after = len(stages) + 1 + max(stage for own, stage in places if own == part)
    later: list[nn.Module] = [*stages[after:]]
    if part == "decoder":
        later += [*getattr(network.decoder, "transpconvs", [])[after:], *network.decoder.seg_layers]
    excluded = {id(parameter) for module in later for parameter in module.parameters()}
    running = network if part == "decoder" else network.encoder
    return [parameter for parameter in running.parameters() if id(parameter) not in excluded]


class FeatureTaps:
    """Catches the output of named places of a network during its forward pass.

    Attach the taps before the first call of a compiled network (later hooks are silently ignored), and after every
    ``deepcopy`` of it (copies carry hooks).

    Args:
        network: the plain network (neither compiled nor wrapped).
        names: as :func:`encoder_tap` and :func:`decoder_tap` give them.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._caught: dict[str, Tensor] = {}
        for name in self.names:
            _location(network, name).register_forward_hook(self._hook(name))

    def take(self) -> dict[str, Tensor]:
        """Return name -> (B, C, *S) of the latest forward pass, no bfloat16, and forget them.

        Raises:
            RuntimeError: a tap did not fire.
        """
        missing = [name for name in self.names if name not in self._caught]
        if missing:
            raise RuntimeError(f"no features at {missing}: the hooks did not fire in the forward pass")
        caught: dict[str, Tensor] = in_float32(self._caught)
        self._caught.clear()
        return caught

    def _hook(self, name: str):  # type: ignore[no-untyped-def]
        def catch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._caught[name] = output

        return catch
