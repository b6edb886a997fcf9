"""The one trainer: nnU-Net's training loop with two data streams and a method that owns the formulas.

Everything nnU-Net does not have to do differently is inherited. A concrete trainer only names its method.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from io import BytesIO
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from nnunet_semicon import __version__
from nnunet_semicon.configuration.run_length import about_run_length
from nnunet_semicon.configuration.wording import as_table, changes_in_words
from nnunet_semicon.data.batch import TwoStreamBatch
from nnunet_semicon.data.color import is_color
from nnunet_semicon.data.gallery import Gallery
from nnunet_semicon.data.images_un import channel_names
from nnunet_semicon.data.loader import TwoStreamLoader
from nnunet_semicon.data.strong import StrongView
from nnunet_semicon.data.workers import stop_workers
from nnunet_semicon.errors import UserError, exit_on_user_error, listing
from nnunet_semicon.methods.base import BuildContext, Method, Progress, StudentOutput
from nnunet_semicon.methods.teacher import TeacherConfig
from nnunet_semicon.networks.exchange import exchanged
from nnunet_semicon.networks.feature_dropout import FeatureDropout
from nnunet_semicon.networks.taps import FeatureTaps, channels_at
from nnunet_semicon.processor import has_bfloat16, threads
from nnunet_semicon.training import checkpoint as checkpoints
from nnunet_semicon.training.configured_trainer import ConfiguredTrainer
from nnunet_semicon.training.gather import RankGather, only_rank
from nnunet_semicon.training.networks import build_network
from nnunet_semicon.training.optimization import backward_and_step, make_optimizer, make_schedule
from nnunet_semicon.training.precision import autocast, remark
from nnunet_semicon.training.scalars import ScalarLog, SummaryOfAnother
from nnunet_semicon.training.snapshots import Snapshots
from nnunet_semicon.training.streams import Augmentation, gallery_of, scan_numbers
from nnunet_semicon.training.student import NetworkStudent
from nnunet_semicon.training.supervised_loss import NnunetLoss


class SemiTrainer(ConfiguredTrainer):
    """Trains a method on labeled and unlabeled scans. There is no ``__init__``: nnU-Net would not survive it."""

    network_of_plans: ClassVar[bool] = True  # nnU-Net alone can build the network

    network: nn.Module
    output_folder: str
    method: Method
    student: NetworkStudent
    supervised_loss: NnunetLoss
    scalars: ScalarLog
    logger: Any  # nnU-Net's; another one while one more network is validated
    snapshots: Snapshots | None = None  # of rank 0, if the method shows any
    gallery: Gallery  # what they show, with its meta-labels
    gallery_meta: dict[str, Tensor]
    _random_state: dict[str, Any] | None = None  # of the checkpoint that a run goes on from; None: a new run
    _iteration = 0  # within the epoch

    # ------------------------------------------------------------------ set-up

    def initialize(self) -> None:
        """Resolve the hyper-parameters, let nnU-Net build network, optimizer and loss, then build the method."""
        with exit_on_user_error():
            self._refuse_what_we_cannot_do()
            self._set_threads()
            super().initialize()
            self._build_method()
            title = f"nnunet_semicon {__version__}, method {self.method_class.__name__}"
            self.print_to_log_file(f"{title}\n{as_table(self.resolved.settings)}", add_timestamp=False)
            run = self.resolved.run
            run_length = about_run_length(self.resolved.needs, run.num_epochs, run.num_iterations_per_epoch)
            if run_length is not None:
                self.print_to_log_file(run_length)
            if self.resolved.too_large is not None:
                self.print_to_log_file(f"a step has no more rows than planned: {self.resolved.too_large}")
            unused = self._unused_keys()
            if unused:
                words = listing(unused, at_most=99)
                self.print_to_log_file(f"not used by {type(self).__name__}: {words}", add_timestamp=False)
            about_precision = remark(self.device.type, run.precision, has_bfloat16())
            if about_precision is not None:
                self.print_to_log_file(about_precision)

    def _unused_keys(self) -> list[str]:
        """Return the keys of the block that change nothing: those of other trainers, or those that need a teacher."""
        has_teacher = checkpoints.TEACHER in self.method.networks()
        of_teachers = ["validate_both"] * (self.resolved.run.validate_both and not has_teacher)
        return [*self.resolved.unused, *of_teachers]

    def _set_threads(self) -> None:
        """On a CPU nnU-Net's command gives torch all processors; ``OMP_NUM_THREADS`` counts again."""
        wanted = threads()
        if self.device.type == "cpu" and wanted is not None:
            torch.set_num_threads(wanted)

    def _do_i_compile(self) -> bool:
        """Never where the encoder alone runs: it is called directly, past the compiled network."""
        return super()._do_i_compile() and not self.resolved.needs.encoder_only

    def configure_optimizers(self) -> tuple[Optimizer, Any]:
        """Return the optimizer and its schedule, before DDP wraps the network."""
        optimizer = make_optimizer(self.plain_network, self._trained_parameters(), self.resolved.run)
        return optimizer, make_schedule([optimizer], self.resolved.run)

    def _trained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the network that are trained: all of them."""
        return list(self.plain_network.parameters())

    def _build_loss(self) -> nn.Module:
        """Return nnU-Net's loss, without its Dice where ``supervised_loss`` is ``ce``."""
        loss: Any = super()._build_loss()
        if self.resolved.run.supervised_loss == "ce":
            getattr(loss, "loss", loss).weight_dice = 0  # below nnU-Net's sum over scales, if there is one
        return loss

    def _build_method(self) -> None:
        needs = self.resolved.needs
        network = self.plain_network
        build = BuildContext(
            network=network,
            facts=self.resolved.facts,
            has_regions=self.label_manager.has_regions,
            n_heads=self.label_manager.num_segmentation_heads,
            ignore_label=self.label_manager.ignore_label,
            tap_channels={name: channels_at(network, name) for name in needs.taps},
            spatial_dims=len(self.configuration_manager.patch_size),
            gather=self._gather(),
            new_network=self._new_network,
            strong=self._strong_view(),
        )
        self.method = self.method_class(self.resolved.config, build).to(self.device)
        # after the method copied its teachers, before the first forward pass
        taps = FeatureTaps(network, needs.taps)
        dropout = FeatureDropout(network) if needs.perturb else None
        self.student = NetworkStudent(self.network, network, taps, needs.encoder_only, dropout)
        self.supervised_loss = NnunetLoss(self.loss, self.label_manager.ignore_label)
        self._add_method_parameters()
        self.scalars = ScalarLog(self.output_folder)

    def _strong_view(self) -> StrongView:
        """Return what makes strong views of images of this configuration."""
        run, configuration = self.resolved.run, self.configuration_manager
        return StrongView(
            configuration.patch_size,
            run.nonlinear,
            run.decreasing_maps,
            run.cutout,
            masked=any(configuration.use_mask_for_norm),
            color=is_color([*channel_names(self.dataset_json).values()], configuration.normalization_schemes),
        )

    def _new_network(self, kind: str) -> nn.Module:
        heads = self.label_manager.num_segmentation_heads
        deep = self.enable_deep_supervision
        return build_network(kind, self.configuration_manager, self.num_input_channels, heads, deep)

    def _gather(self) -> Callable[[Tensor], Tensor]:
        """Return what maps the unlabeled rows of this rank to those of all ranks."""
        if not self.is_ddp:
            return only_rank
        counts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(counts, self.rows.images)
        return RankGather(counts)

    def _add_method_parameters(self) -> None:
        """Give the method's parameters to nnU-Net's optimizer, except those with an optimizer of their own."""
        own = self.method.optimizers()
        taken = {id(p) for optimizer in own for group in optimizer.param_groups for p in group["params"]}
        ours = [p for p in self.method.parameters() if p.requires_grad and id(p) not in taken]
        if ours:
            self.optimizer.add_param_group({"params": ours, "lr": self.initial_lr})
        self.optimizers: list[Optimizer] = [self.optimizer, *own]
        self.lr_scheduler = make_schedule(self.optimizers, self.resolved.run)
        if self.is_ddp:
            for tensor in self.method.state_dict().values():
                dist.broadcast(tensor, src=0)

    @property
    def plain_network(self) -> nn.Module:
        """The network without the wrappers of DDP and torch.compile."""
        network = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        return network._orig_mod if isinstance(network, OptimizedModule) else network

    # ------------------------------------------------------------------ training

    def _training_stream(
        self, dataset_train: Any, dataset_val: Any, labeled: nnUNetDataLoader | None, augmentation: Augmentation
    ) -> TwoStreamLoader:
        """The loader of training batches; from its cases come the few images that snapshots show."""
        stream = super()._training_stream(dataset_train, dataset_val, labeled, augmentation)
        if self.method.show is not None:
            self.gallery, self.gallery_meta = gallery_of(stream, self.method.show, augmentation.patch_size)
        return stream

    def run_training(self) -> None:
        """nnU-Net's loop; workers are shut down however it ends."""
        try:
            super().run_training()
        finally:
            stop_workers(self.dataloader_train)
            stop_workers(self.dataloader_val)

    def on_train_start(self) -> None:
        """nnU-Net's start; then teachers take over the student (pre-trained weights were loaded after initialize)."""
        super().on_train_start()
        if self._random_state is None:
            with exit_on_user_error():
                self.method.on_train_start(self.plain_network)
        else:
            checkpoints.set_random_state(self._random_state)  # the loaders have drawn their first batches by now
        if self.local_rank == 0:
            self._write_settings()  # not before: a resumed run with other settings is refused and changes no file
            self.scalars.truncate(self.current_epoch)
            if self.method.show is not None:
                self.snapshots = Snapshots(self.output_folder, self.method.show, self.num_epochs)
                self.snapshots.truncate(self.current_epoch)

    def on_train_epoch_start(self) -> None:
        """nnU-Net's epoch start, for the method too."""
        super().on_train_epoch_start()
        self.method.train()
        self._iteration = 0

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One step: the method's loss, then scale, clip and step for every optimizer."""
        two_streams = TwoStreamBatch.from_dict(batch).to(self.device)
        progress = Progress(
            self.current_epoch * self.num_iterations_per_epoch + self._iteration,
            self.num_epochs * self.num_iterations_per_epoch,
        )
        if self.lr_scheduler.changes_within_epochs:
            self.lr_scheduler.step(self.current_epoch + self._iteration / self.num_iterations_per_epoch)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        with self._autocast(), exit_on_user_error():
            output = self.method.compute(self.student, two_streams, self.supervised_loss, progress)
        backward_and_step(output.loss, self.optimizers, self.grad_scaler, self._unsynchronized_parameters())
        with self._autocast(), exit_on_user_error():
            self.method.after_step(self.plain_network, two_streams, output, progress)
        self.scalars.add({"loss": output.loss, **output.scalars})
        self._iteration += 1
        return {"loss": output.loss.detach().cpu().numpy()}

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.device.type, self.resolved.run.precision)

    def _encode_in_parts(self, images: Tensor) -> StudentOutput:
        """The features of the encoder, for more images than the network was planned for."""
        parts = [self.student.encode(part).features for part in images.split(max(1, self.batch_size))]
        return StudentOutput([], {name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    def _unsynchronized_parameters(self) -> list[nn.Parameter]:
        """DDP synchronizes only the wrapped network, and only where its own forward pass ran."""
        of_network = self.plain_network.parameters() if self.resolved.needs.encoder_only else ()
        return [*of_network, *self.method.parameters()]

    def on_epoch_end(self) -> None:
        """The method's curves and pictures, then nnU-Net's epoch end (checkpoints)."""
        self._write_scalars()
        self._take_snapshot()
        super().on_epoch_end()

    def _take_snapshot(self) -> None:
        """Let the method show what it does with a few fixed images."""
        finished = self.current_epoch + 1
        if self.snapshots is None or not self.snapshots.is_due(finished):
            return
        self.network.eval()
        self.method.eval()
        images, meta = self.gallery.image.to(self.device), {k: v.to(self.device) for k, v in self.gallery_meta.items()}
        with torch.no_grad(), self._autocast():
            arrays = self.method.snapshot(self._encode_in_parts, images, meta, finished / self.num_epochs)
        self.snapshots.add(finished, {**arrays, "scan": scan_numbers(self.gallery.case)})

    def _write_scalars(self) -> None:
        means = self.scalars.pop_means()
        if self.is_ddp:
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, means)
            means = {name: float(np.mean([rank[name] for rank in gathered])) for name in means}
        if self.local_rank == 0:
            self.scalars.write(self.current_epoch, means)
            for logger in self.logger.loggers:
                for name, value in means.items():
                    logger.log(f"semicon/{name}", value, self.current_epoch)
        self.print_to_log_file("  ".join(f"{name} {value:.4f}" for name, value in means.items()))

    # ------------------------------------------------------------------ validation

    def _teacher_predicts(self) -> bool:
        config = self.resolved.config
        return isinstance(config, TeacherConfig) and config.predicts_with_teacher

    def _as_teacher(self) -> AbstractContextManager[None]:
        """Give the student the weights of the teacher inside a ``with`` block."""
        return exchanged(self.plain_network, self.method.networks()[checkpoints.TEACHER])

    def _as_predictor(self) -> AbstractContextManager[None]:
        """Give the student the weights that predict inside a ``with`` block: its own, or those of the teacher."""
        return self._as_teacher() if self._teacher_predicts() else nullcontext()

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's step, with the weights that predict: online Dice and the best checkpoint follow from them."""
        with self._as_predictor():
            return dict(super().validation_step(batch))

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's validation of the weights that predict, then of other networks, in folders with their names."""
        with self._as_predictor():
            super().perform_actual_validation(save_probabilities)
        networks = self.method.networks()
        if self.resolved.run.validate_both and checkpoints.TEACHER in networks:
            if self._teacher_predicts():
                self._validate_another(checkpoints.STUDENT, self.network, save_probabilities)
            else:
                with self._as_teacher():
                    self._validate_another(checkpoints.TEACHER, self.network, save_probabilities)
        if "second" in networks:
            second = networks["second"]
            # with several processes nnU-Net looks for the network below a wrapper; this one synchronizes nothing
            wrapped = nn.DataParallel(second, [self.device.index]) if self.is_ddp else second
            self._validate_another("second", wrapped, save_probabilities)

    def _validate_another(self, name: str, network: nn.Module, save_probabilities: bool) -> None:
        """nnU-Net's validation of one more network, in a folder of its own."""
        self.print_to_log_file(f"Validation of the {'second network' if name == 'second' else name}:")
        kept = self.network, self.output_folder, self.logger
        self.network, self.output_folder = network, os.path.join(self.output_folder, name)
        self.logger = SummaryOfAnother(self.logger, name)
        try:
            super().perform_actual_validation(save_probabilities)
        finally:
            self.network, self.output_folder, self.logger = kept

    # ------------------------------------------------------------------ checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint with one extra key, written atomically; nnU-Net finds the weights that predict in it."""
        state = checkpoints.random_state()
        states = [state]
        if self.is_ddp:
            states = [{}] * dist.get_world_size()
            dist.all_gather_object(states, state)
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        extra = {
            "version": __version__,
            "settings": {name: derived.value for name, derived in self.resolved.settings.items()},
            "method": self.method.state_dict(),
            "networks": checkpoints.prefixes(self.method, self.method.networks()),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers[1:]],
            "random_states": states,
        }

        def write_stock(buffer: BytesIO) -> None:
            super(SemiTrainer, self).save_checkpoint(buffer)

        checkpoints.save_with_extra(write_stock, extra, filename, self._teacher_predicts())

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Load nnU-Net's part, then everything the method needs to go on; the network is the student again."""
        checkpoint = torch.load(filename_or_checkpoint, map_location="cpu", weights_only=False)
        extra = checkpoint.get(checkpoints.KEY)
        with exit_on_user_error():
            if extra is None:
                raise UserError(
                    f"{filename_or_checkpoint} has no '{checkpoints.KEY}' entry, so none of our trainers wrote it; "
                    "expected a checkpoint of the same trainer: start anew, or load it with -pretrained_weights"
                )
            states = extra["random_states"]
            self._random_state = states[self.local_rank] if self.local_rank < len(states) else states[0]
            if not self.was_initialized:
                self._stored = extra["settings"]
                self.initialize()
            changed = self.resolved.changed(extra["settings"])
            if changed:
                words, restoring = listing(changes_in_words(changed)), self.resolved.restoring(changed)
                raise UserError(
                    f"{filename_or_checkpoint} was trained with other settings ({words}): set them back in "
                    f"configuration '{self.configuration_name}' of {self.plans_manager.plans_name}.json "
                    f"(`semicon configure ... --set {restoring}`), or train the new ones in one of their own"
                )
        super().load_checkpoint(filename_or_checkpoint)
        self.plain_network.load_state_dict(checkpoints.weights_of(checkpoint, checkpoints.STUDENT))
        self.method.load_state_dict(extra["method"])
        for optimizer, state in zip(self.optimizers[1:], extra["optimizers"], strict=True):
            optimizer.load_state_dict(state)
