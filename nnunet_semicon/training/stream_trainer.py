"""The data of a training: nnU-Net's split, its labeled loader, and the unlabeled stream beside it."""

import os
from collections.abc import Sequence
from typing import Any

from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_semicon.configuration.resolved import Resolved
from nnunet_semicon.configuration.rules import RowPlan
from nnunet_semicon.data.loader import TwoStreamLoader
from nnunet_semicon.data.splits import ALL, FILE, check_fold, read_splits, refuse_too_few_to_draw
from nnunet_semicon.data.unlabeled import require_preprocessed, unlabeled_cases, unlabeled_folder
from nnunet_semicon.data.workers import start_workers
from nnunet_semicon.errors import exit_on_user_error
from nnunet_semicon.training.streams import Augmentation, cases_to_draw, two_streams, without_timing


class StreamTrainer(nnUNetTrainer):
    """nnU-Net's trainer with two data streams; what it trains is up to its subclass, which resolves the settings."""

    resolved: Resolved

    @property
    def rows(self) -> RowPlan:
        """How the rows of a step of this rank are spent."""
        return self.resolved.rows

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's split, after a check of the fold's ``unlabeled`` list."""
        with exit_on_user_error():
            self._split_unlabeled()
        return super().do_split()

    def _split_unlabeled(self) -> list[str]:
        """Return the cases of imagesTr that the fold lists as unlabeled."""
        splits_file = os.path.join(self.preprocessed_dataset_folder_base, FILE)
        if self.fold == ALL:
            return []
        known = self.dataset_class.get_identifiers(self.preprocessed_dataset_folder)
        if not os.path.isfile(splits_file):
            refuse_too_few_to_draw(known, self.preprocessed_dataset_folder_base)
            return []
        fold = check_fold(read_splits(splits_file), self.fold, known, splits_file)
        return fold.unlabeled if fold is not None else []

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Return nnU-Net's augmenters around our training loader and a validation loader."""
        with exit_on_user_error():
            train, val = self._loaders(self._augmentation())
            # the epoch keeps a resumed run from repeating the batches of its beginning
            seed = self.resolved.run.seed
            entropy = None if seed is None else [seed, self.local_rank, self.current_epoch]
            return start_workers(train, val, entropy, pin_memory=self.device.type == "cuda")

    def _augmentation(self) -> Augmentation:
        """Return nnU-Net's crops and transforms."""
        patch_size = self.configuration_manager.patch_size
        rotation, dummy_2d, initial_patch_size, mirror_axes = (
            self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        scales = self._get_deep_supervision_scales()
        labels = {
            "foreground_labels": self.label_manager.foreground_labels,
            "regions": self.label_manager.foreground_regions if self.label_manager.has_regions else None,
            "ignore_label": self.label_manager.ignore_label,
        }
        masking = self.configuration_manager.use_mask_for_norm
        training = self.get_training_transforms(
            patch_size, rotation, scales, mirror_axes, dummy_2d, use_mask_for_norm=masking, **labels
        )
        if self.resolved.run.seed is not None:
            training = without_timing(training)
        return Augmentation(initial_patch_size, patch_size, training, self.get_validation_transforms(scales, **labels))

    def _loaders(self, augmentation: Augmentation) -> tuple[Any, Any]:
        """Return the two-stream training loader and the stock validation loader."""
        dataset_train, dataset_val = self.get_tr_and_val_datasets()
        labeled = self._labeled_loader(dataset_train, augmentation.initial_patch_size, augmentation.training)
        train = self._training_stream(dataset_train, dataset_val, labeled, augmentation)
        val = nnUNetDataLoader(
            dataset_val,
            self.batch_size,
            augmentation.patch_size,
            augmentation.patch_size,
            self.label_manager,
            oversample_foreground_percent=self.oversample_foreground_percent,
            probabilistic_oversampling=self.probabilistic_oversampling,
            transforms=augmentation.validation,
        )
        return train, val

    def _labeled_loader(self, dataset: Any, initial_patch_size: Sequence[int], transforms: Any) -> nnUNetDataLoader:
        """Return nnU-Net's loader of the labeled rows of a step."""
        return nnUNetDataLoader(
            dataset,
            self.rows.labeled,
            initial_patch_size,
            self.configuration_manager.patch_size,
            self.label_manager,
            oversample_foreground_percent=self.oversample_foreground_percent,
            probabilistic_oversampling=self._oversample_by_chance(),
            transforms=transforms,
        )

    def _oversample_by_chance(self) -> bool:
        """With one or two labeled rows, nnU-Net's rounding would never force a patch onto the foreground."""
        forced = self.rows.labeled - round(self.rows.labeled * (1 - self.oversample_foreground_percent))
        return self.probabilistic_oversampling or (self.rows.labeled < self.batch_size and forced == 0)

    def _training_stream(
        self, dataset_train: Any, dataset_val: Any, labeled: nnUNetDataLoader | None, augmentation: Augmentation
    ) -> TwoStreamLoader:
        """Return the loader of training batches, and say what it draws from."""
        needs = self.resolved.needs
        from_split, from_folder = (self._split_unlabeled(), self._images_un()) if needs.views else ([], [])
        self._say_what_it_trains_on(dataset_train, dataset_val, from_split, from_folder)
        unlabeled = [self.dataset_class(self.preprocessed_dataset_folder, list(from_split))]
        if from_folder:
            unlabeled.append(nnUNetDatasetBlosc2(self._unlabeled_folder(), list(from_folder)))
        cases = cases_to_draw(dataset_train, unlabeled, needs.draw_all)
        if self.rows.scans > len(cases):
            self.print_to_log_file(f"only {len(cases)} scans for {self.rows.scans} per step: scans repeat in a step")
        return two_streams([dataset_train, *unlabeled], cases, self.rows, labeled, self.resolved, augmentation)

    def _cases(self) -> list[str]:
        """Return all cases of the dataset, those of ``imagesUn`` too, preprocessed or not."""
        folder = self.preprocessed_dataset_folder  # nnU-Net's own initialize() may not have looked at it yet
        labeled = infer_dataset_class(folder).get_identifiers(folder)
        unlabeled = unlabeled_cases(self._raw_dataset(), self._unlabeled_folder(), self.dataset_json)
        return sorted({*labeled, *unlabeled})

    def _unlabeled_folder(self) -> str:
        return unlabeled_folder(self.preprocessed_dataset_folder_base, self.configuration_manager.data_identifier)

    def _images_un(self) -> list[str]:
        """Return the preprocessed cases of imagesUn; refuses a folder that is not, or not correctly, preprocessed."""
        return require_preprocessed(
            self._raw_dataset(),
            self.preprocessed_dataset_folder_base,
            self.plans_manager,
            self.configuration_name,
            self.dataset_json,
        )

    def _raw_dataset(self) -> str:
        """Return the raw folder of the dataset, or an empty path where this machine has none."""
        return os.path.join(nnUNet_raw, self.plans_manager.dataset_name) if nnUNet_raw.is_set() else ""

    def _say_what_it_trains_on(
        self, dataset_train: Any, dataset_val: Any, from_split: list[str], from_folder: list[str]
    ) -> None:
        uses_them = self.resolved.needs.views > 0
        origin = f"imagesUn {len(from_folder)}, split {len(from_split)}" if uses_them else "this trainer uses none"
        self.print_to_log_file(
            f"labeled {len(dataset_train.identifiers)}, unlabeled {len(from_split) + len(from_folder)} ({origin}), "
            f"validation {len(dataset_val.identifiers)}"
        )
        if uses_them and not from_split and not from_folder:
            self.print_to_log_file(
                "no unlabeled case: the training cases are the unlabeled stream, without their labels"
            )
