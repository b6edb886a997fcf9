"""Do weights fit a network? nnU-Net finds out with an assertion, after the training has begun."""

import hashlib
import inspect
import zipfile
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_semicon.errors import UserError
from nnunet_semicon.training.checkpoint import weights_of

HEADS = ".seg_layers."  # not loaded by nnU-Net: the number of classes may differ


@dataclass(frozen=True)
class Network:
    """A network, as a checkpoint holds it or as a configuration asks for it.

    Attributes:
        what: in words, for messages.
        shapes: parameter -> shape.
        channels: input channels; None where a checkpoint does not say.
        configuration: the configuration of the plans, inheritance resolved; empty where a checkpoint does not say.
    """

    what: str
    shapes: Mapping[str, tuple[int, ...]]
    channels: int | None
    configuration: Mapping[str, Any]

    @property
    def architecture(self) -> dict[str, Any]:
        """Everything about the architecture that can differ, the most telling first."""
        architecture = self.configuration.get("architecture", {})
        facts = {"network_class_name": architecture.get("network_class_name"), **architecture.get("arch_kwargs", {})}
        return {"input channels": self.channels, **facts}


def network_of(
    trainer: type[nnUNetTrainer], plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any]
) -> Network:
    """Return the network that a trainer builds for a configuration.

    Raises:
        UserError: it cannot build one.
    """
    what = f"configuration '{configuration}' of {plans['plans_name']}.json with {trainer.__name__}"
    try:
        manager = PlansManager(deepcopy(dict(plans)))
        settings = manager.get_configuration(configuration)
        channels = determine_num_input_channels(manager, settings, dict(dataset_json))
        heads = manager.get_label_manager(dict(dataset_json)).num_segmentation_heads
        if "plans_manager" in inspect.signature(trainer.build_network_architecture).parameters:
            network = trainer.build_network_architecture(manager, settings, channels, heads, True)
        else:  # of trainers that were written for nnU-Net before 2.8
            network = trainer.build_network_architecture(
                settings.network_arch_class_name,
                settings.network_arch_init_kwargs,
                settings.network_arch_init_kwargs_req_import,
                channels,
                heads,
                True,
            )
    except Exception as error:  # whatever a network raises that does not fit the plans
        raise UserError(
            f"{what} has no network ({type(error).__name__}: {error}): try the trainer without any weights first"
        ) from None
    return Network(what, _shapes(network.state_dict()), channels, settings.configuration)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return what nnU-Net stored; tensors stay in the file until they are used.

    Raises:
        UserError: there is no such file, or it is not a whole checkpoint of nnU-Net.
    """
    expected = "expected a checkpoint of nnU-Net, such as checkpoint_final.pth"
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist: {expected}")
    if not is_whole(path):
        raise UserError(f"{path} is damaged or no checkpoint: {expected}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    except Exception as error:  # whatever unpickling raises
        raise UserError(f"{path} cannot be read ({type(error).__name__}): {expected}") from None
    if not isinstance(content, dict) or not isinstance(content.get("network_weights"), Mapping):
        raise UserError(f"{path} has no 'network_weights': {expected}")
    return content


def has_network(checkpoint: dict[str, Any], network: str) -> bool:
    """Return whether a checkpoint has a network beside the student: ``teacher`` or ``second``."""
    try:
        weights_of(checkpoint, network)
    except KeyError:  # of a stock trainer, or of a method without it
        return False
    return True


def network_in(path: str | Path) -> Network:
    """Return the network whose weights a checkpoint of nnU-Net holds.

    Raises:
        UserError: as for :func:`read_checkpoint`.
    """
    content = read_checkpoint(path)
    configuration, channels = {}, None
    try:
        args = content["init_args"]
        manager = PlansManager(deepcopy(args["plans"]))
        settings = manager.get_configuration(args["configuration"])
        channels = determine_num_input_channels(manager, settings, args["dataset_json"])
        configuration = settings.configuration
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError):
        pass  # the weights alone decide; the plans only explain
    return Network(str(path), _shapes(content["network_weights"]), channels, configuration)


def misfit(weights: Network, network: Network) -> str | None:
    """Return why ``-pretrained_weights`` would refuse weights for a network, in words, or None if it would not."""
    keys = [key for key in network.shapes if HEADS not in key]
    wrong = next((key for key in keys if weights.shapes.get(key) != network.shapes[key]), None)
    if wrong is None:
        return None
    ours, theirs = weights.architecture, network.architecture
    # a checkpoint that says nothing about its plans is explained by the parameter alone
    told = [key for key in theirs if weights.configuration and ours.get(key) != theirs[key]]
    if told:
        return f"{told[0]} is {ours.get(told[0])} in {weights.what} and {theirs[told[0]]} in {network.what}"
    here, there = weights.shapes.get(wrong, "missing"), network.shapes[wrong]
    return f"the parameter {wrong} is {here} in {weights.what} and {there} in {network.what}"


def is_whole(path: str | Path) -> bool:
    """Return whether a checkpoint was written to its end: its table of contents is the last thing written."""
    return zipfile.is_zipfile(path)


def fingerprint(path: str | Path) -> str:
    """Return what tells a checkpoint from others, copies apart; from the checksums in it, so that it costs nothing."""
    with zipfile.ZipFile(path) as archive:
        entries = sorted((info.filename, info.CRC, info.file_size) for info in archive.infolist())
    return hashlib.sha256(repr(entries).encode()).hexdigest()


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
