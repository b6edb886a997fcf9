"""The hyper-parameters of a training: resolved from plans and data before nnU-Net builds anything, and written down."""

import json
import os
import random
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist

from nnunet_semicon import __version__
from nnunet_semicon.configuration.config import BLOCK, check_keys, keys_of
from nnunet_semicon.configuration.resolved import Resolved, read_fingerprint, resolve_run
from nnunet_semicon.configuration.run import RunConfig
from nnunet_semicon.data.meta import training_table
from nnunet_semicon.data.unlabeled import dataset_option
from nnunet_semicon.errors import UserError
from nnunet_semicon.methods.base import Method
from nnunet_semicon.training.memory import memory_of, smallest_over_ranks
from nnunet_semicon.training.stream_trainer import StreamTrainer


class ConfiguredTrainer(StreamTrainer):
    """Obeys the ``semicon`` block of its configuration; a subclass names its method."""

    method_class: ClassVar[type[Method]]
    defaults: ClassVar[Mapping[str, Any]] = {}  # a `semicon` block: what this trainer sets in place of the method's
    _stored: Mapping[str, Any] | None = None  # settings of the checkpoint that a run goes on from; None: a new run

    def _refuse_what_we_cannot_do(self) -> None:
        if self.is_cascaded:
            raise UserError(
                f"configuration '{self.configuration_name}' is a cascade stage (previous_stage "
                f"'{self.configuration_manager.previous_stage_name}'), which we do not support; "
                "use '3d_fullres' or '2d'"
            )
        folder = self.preprocessed_dataset_folder
        if not os.path.isdir(folder) or not os.listdir(folder):
            raise UserError(
                f"configuration '{self.configuration_name}' is not preprocessed (no case in {folder}); run: "
                f"nnUNetv2_preprocess {dataset_option(self.preprocessed_dataset_folder_base)} -plans_name "
                f"{self.plans_manager.plans_name} -c {self.configuration_name}"
            )

    def _set_batch_size_and_oversample(self) -> None:
        """nnU-Net's first act in ``initialize``: settings need the rows of this rank, the network needs their seed."""
        super()._set_batch_size_and_oversample()
        self.resolved = self._resolve()
        self._apply_run_config(self.resolved.run)

    def _resolve(self) -> Resolved:
        """Return every hyper-parameter of this run with its reason."""
        meta = None
        if self.method_class.needs.meta:
            meta = training_table(self._raw_dataset(), self.preprocessed_dataset_folder_base, self._cases())
        configuration = self.configuration_manager.configuration
        where = (
            f"the '{BLOCK}' block of configuration '{self.configuration_name}' ({self.plans_manager.plans_name}.json)"
        )
        check_keys(configuration.get(BLOCK, {}), known_keys(), where)
        return resolve_run(
            configuration,
            self.plans_manager.plans,
            read_fingerprint(self.preprocessed_dataset_folder_base),
            meta,
            self.method_class,
            self.device.type,
            where,
            rank_batch_size=self.batch_size,
            ranks=dist.get_world_size() if self.is_ddp else 1,
            defaults=self.defaults,
            memory=smallest_over_ranks(self._device_memory()),
            stored=self._stored,
        )

    def _device_memory(self) -> float | None:
        """Return the bytes of this rank's GPU, None for other devices."""
        return memory_of(self.device)

    def _apply_run_config(self, run: RunConfig) -> None:
        self.num_epochs = run.num_epochs
        self.num_iterations_per_epoch = run.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = run.num_val_iterations_per_epoch
        self.save_every = run.save_every
        self.initial_lr, self.weight_decay = run.learning_rate, run.weight_decay
        if run.seed is not None:
            # ranks must augment differently; DDP gives all of them the network of rank 0
            seed = run.seed + 1000 * self.local_rank
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)

    def _write_settings(self) -> None:
        """Write every hyper-parameter with its reason to ``semicon_config.json`` in the fold folder."""
        content = {
            "version": __version__,
            "trainer": type(self).__name__,
            "settings": {name: derived._asdict() for name, derived in self.resolved.settings.items()},
        }
        with open(os.path.join(self.output_folder, "semicon_config.json"), "w") as file:
            json.dump(content, file, indent=2)


def known_keys() -> set[str]:
    """Return every key that some trainer understands; a configuration may be used with several trainers."""
    configs: list[type] = [trainer.method_class.Config for trainer in _named_trainers(ConfiguredTrainer)]
    return {key for config_class in (RunConfig, *configs) for key in keys_of(config_class)}


def _named_trainers(base: type[ConfiguredTrainer]) -> Iterator[type[ConfiguredTrainer]]:
    for trainer in base.__subclasses__():
        if hasattr(trainer, "method_class"):
            yield trainer
        yield from _named_trainers(trainer)
