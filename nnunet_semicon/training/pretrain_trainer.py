"""Pre-training: checkpoints that any trainer starts from with ``-pretrained_weights``, and nothing segmented yet."""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from nnunet_semicon.configuration.facts import FEW_EMBEDDINGS
from nnunet_semicon.configuration.rules import RowPlan
from nnunet_semicon.data.batch import TwoStreamBatch
from nnunet_semicon.methods.base import PretrainMethod, StudentOutput
from nnunet_semicon.networks.taps import parameters_up_to
from nnunet_semicon.training.semi_trainer import SemiTrainer
from nnunet_semicon.training.streams import Augmentation, two_streams


class PretrainTrainer(SemiTrainer):
    """What a pre-training trains, and its validation on what the method sees of the validation cases.

    Everywhere nnU-Net wants a Dice (best checkpoint, progress figure), it gets the negative loss on validation images.
    """

    method_class: ClassVar[type[PretrainMethod]]
    method: PretrainMethod

    def _trained_parameters(self) -> list[nn.Parameter]:
        """Return what the contrasted features depend on; the rest is frozen, or weight decay alone would move it."""
        trained = parameters_up_to(self.plain_network, self.resolved.needs.taps)
        ids = {id(parameter) for parameter in trained}
        for parameter in self.plain_network.parameters():
            parameter.requires_grad_(id(parameter) in ids)
        return trained

    def _loaders(self, augmentation: Augmentation) -> tuple[Any, Any]:
        """Return two loaders of what the method sees: of the training cases, and of the validation cases.

        Labeled validation images are not augmented; the views of unlabeled ones are made as in training.
        """
        dataset_train, dataset_val = self.get_tr_and_val_datasets()
        labeled = labeled_val = None
        if self.rows.labeled:
            labeled = self._labeled_loader(dataset_train, augmentation.initial_patch_size, augmentation.training)
            labeled_val = self._labeled_loader(dataset_val, augmentation.patch_size, augmentation.validation)
        train = self._training_stream(dataset_train, dataset_val, labeled, augmentation)
        rows, cases = validation_rows(self.rows), list(dataset_val.identifiers)
        return train, two_streams([dataset_val], cases, rows, labeled_val, self.resolved, augmentation)

    # ------------------------------------------------------------------ validation

    def on_validation_epoch_start(self) -> None:
        """nnU-Net's start, for the method too."""
        super().on_validation_epoch_start()
        self.method.eval()

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Loss of one batch of validation images, and what else the method watches."""
        two_streams_batch = TwoStreamBatch.from_dict(batch).to(self.device)
        with torch.no_grad(), self._autocast():
            scalars = self.method.validate(self._validation_student, two_streams_batch)
        self.scalars.add({f"val_{name}": value for name, value in scalars.items()})
        return {"loss": scalars["loss"].cpu().numpy()}

    def _validation_student(self, images: Tensor) -> StudentOutput:
        return self._encode_in_parts(images) if self.resolved.needs.encoder_only else self.student(images)

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """Give nnU-Net's logger the values it wants every epoch."""
        loss = float(np.mean([output["loss"] for output in val_outputs]))
        if self.is_ddp:
            losses: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(losses, loss)
            loss = float(np.mean(losses))
        self.logger.log("mean_fg_dice", -loss, self.current_epoch)
        self.logger.log("dice_per_class_or_region", [-loss], self.current_epoch)
        self.logger.log("val_losses", loss, self.current_epoch)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """There is nothing to segment yet; say how to go on."""
        self.print_to_log_file(
            "pre-training is done and segments nothing yet; start another training from it, in a configuration of its "
            f"own, with -pretrained_weights {self.output_folder}/checkpoint_final.pth"
        )


def validation_rows(rows: RowPlan) -> RowPlan:
    """Return how many validation images a batch has: enough of them to contrast, also where a step has few."""
    wanted = max(rows.images, FEW_EMBEDDINGS // 2)
    if not rows.scans:
        return replace(rows, images=wanted)
    scans = -(-wanted // rows.partitions_per_scan)
    return replace(rows, scans=scans, images=scans * rows.partitions_per_scan)
