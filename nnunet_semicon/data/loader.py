"""The two streams of a training step: nnU-Net's labeled batch, and views of unlabeled images with their meta-labels."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

from nnunet_semicon.data.sampler import draw_cases, draw_scans
from nnunet_semicon.data.views import ViewPipeline
from nnunet_semicon.meta_labels.position import SliceAxis
from nnunet_semicon.meta_labels.table import POSITION, MetaColumn


class CasePool:
    """Preprocessed cases from one or more folders, read without ever looking at a label.

    Args:
        datasets: nnU-Net dataset objects; a case id belongs to the first that lists it.
        array_axis: axis of the stored scans that is axis 0 after ``transpose_forward``.
    """

    def __init__(self, datasets: Sequence[Any], array_axis: int) -> None:
        self._array_axis = array_axis
        self._source = {case: dataset for dataset in reversed(datasets) for case in dataset.identifiers}

    def load(self, case: str) -> tuple[Any, Any]:
        """Return image (C, *S) and segmentation (1, *S) as nnU-Net's lazily read arrays."""
        data, segmentation, _, _ = self._source[case].load_case(case)
        return data, segmentation

    @cache  # noqa: B019  (the pool lives as long as the training)
    def slice_axis(self, case: str) -> SliceAxis:
        """Return where the slices of a case lie in the original scan."""
        data, _, _, properties = self._source[case].load_case(case)
        return SliceAxis.from_properties(properties, data.shape[1], self._array_axis)


class MetaLabeler:
    """Meta-labels of a row from its case and its crop.

    Args:
        columns: name -> column of the meta table.
        partitions: S, or None where there is no position label.
        pool: knows the slice axis of every case.
    """

    def __init__(self, columns: Mapping[str, MetaColumn], partitions: int | None, pool: CasePool) -> None:
        self.columns = columns
        self.partitions = partitions
        self.pool = pool

    def codes(self, cases: Sequence[str], boxes: Tensor) -> dict[str, Tensor]:
        """Return meta-label -> (B,) int64 for B rows with their crops (B, 3, 2)."""
        codes = {
            name: torch.tensor([column.code(case) for case in cases], dtype=torch.int64)
            for name, column in self.columns.items()
        }
        if self.partitions is not None:
            centers = boxes[:, 0].double().mean(dim=1).tolist()
            positions = [
                int(self.pool.slice_axis(case).partition(center, self.partitions))
                for case, center in zip(cases, centers, strict=True)
            ]
            codes[POSITION] = torch.tensor(positions, dtype=torch.int64)
        return codes


class UnlabeledLoader:
    """Draws unlabeled images, crops them without knowing any label, and makes their views.

    Args:
        pool: reads the cases.
        cases: the case ids to draw from.
        images: images per step.
        scans: scans per step of the meta-label sampler (each gives ``images // scans``); 0: single images.
        partitions: S, or None.
        initial_patch_size: voxels of the crop before the spatial transforms (2 or 3 entries).
        patch_size: voxels that the network sees.
        views: makes the views.
    """

    def __init__(
        self,
        pool: CasePool,
        cases: Sequence[str],
        images: int,
        scans: int,
        partitions: int | None,
        initial_patch_size: Sequence[int],
        patch_size: Sequence[int],
        views: ViewPipeline,
    ) -> None:
        self.pool = pool
        self.cases = cases
        self.images = images
        self.scans = scans
        self.partitions = partitions
        self.is_2d = len(patch_size) == 2
        thickness = [1] if self.is_2d else []
        self.crop_size = np.array([*thickness, *initial_patch_size], dtype=int)
        self.margin = self.crop_size - np.array([*thickness, *patch_size], dtype=int)
        self.views = views
        self._warned = False

    def draw(self) -> tuple[Tensor, Tensor, list[str]]:
        """Return views (V, B_u, C, *S) float32, boxes (B_u, 3, 2) int64 and B_u case ids."""
        if self.scans:
            draws = draw_scans(self.cases, self.scans, self.images // self.scans, self.partitions)
        else:
            draws = draw_cases(self.cases, self.images)
        views, boxes = [], []
        for case, partition in draws:
            data, segmentation = self.pool.load(case)
            box = self._random_box(np.array(data.shape[1:]), case, partition)
            views.append(self.views(*self._crop(data, segmentation, box)))
            boxes.append(torch.from_numpy(box))
        return torch.stack(views, dim=1), torch.stack(boxes), [case for case, _ in draws]

    def _random_box(self, shape: NDArray[Any], case: str, partition: int | None) -> NDArray[np.int64]:
        """Return a crop (3, 2) that lies where nnU-Net's own random crops may lie."""
        padding = np.maximum(self.margin, self.crop_size - shape)
        lowest = -(padding // 2)
        highest = np.maximum(shape + padding // 2 + padding % 2 - self.crop_size, lowest)
        lower = np.array([np.random.randint(low, high + 1) for low, high in zip(lowest, highest, strict=True)])
        if partition is not None and self.partitions is not None:
            starts = np.arange(lowest[0], highest[0] + 1)
            centers = starts + self.crop_size[0] / 2
            fitting = starts[self.pool.slice_axis(case).partition(centers, self.partitions) == partition]
            if len(fitting):
                lower[0] = np.random.choice(fitting)
            elif not self._warned:  # the random slice stays; its label is computed from where it really lies
                self._warned = True
                print(f"case {case} has no slice in partition {partition}: a random one is used (said once)")
        return np.stack([lower, lower + self.crop_size], axis=1).astype(np.int64)

    def _crop(self, data: Any, segmentation: Any, box: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        corners = box.tolist()
        image = torch.from_numpy(crop_and_pad_nd(data, corners, 0)).float()
        outside = None
        if self.views.needs_mask:
            # only the sign of the stored segmentation is used: -1 marks the outside of the nonzero mask
            outside = torch.from_numpy(-(np.asarray(crop_and_pad_nd(segmentation, corners, -1)) < 0).astype(np.int16))
        if self.is_2d:
            image, outside = image[:, 0], None if outside is None else outside[:, 0]
        return image, outside


class TwoStreamLoader:
    """Endless iterator over the dicts that :class:`~nnunet_semicon.data.batch.TwoStreamBatch` wraps.

    Args:
        labeled: nnU-Net's labeled loader; None for a method that uses no label (pre-training).
        unlabeled: None for a method that uses no unlabeled image.
        meta: meta-labels of the unlabeled rows.
    """

    def __init__(self, labeled: nnUNetDataLoader | None, unlabeled: UnlabeledLoader | None, meta: MetaLabeler) -> None:
        self.labeled = labeled
        self.unlabeled = unlabeled
        self.meta = meta

    def __iter__(self) -> "TwoStreamLoader":
        return self

    def __next__(self) -> dict[str, Any]:
        images, cases, target, views, meta = [], [], [], None, {}
        if self.labeled is not None:
            labeled = next(self.labeled)
            images.append(labeled["data"])
            cases += [str(case) for case in labeled["keys"]]
            target = labeled["target"]
        n_labeled = len(cases)
        if self.unlabeled is not None:
            with torch.no_grad(), threadpool_limits(limits=1, user_api=None):
                drawn, boxes, drawn_cases = self.unlabeled.draw()
            images.append(drawn[0])
            cases += drawn_cases
            views = drawn[1:]
            meta = self.meta.codes(drawn_cases, boxes)
        image = torch.cat(images)
        return {
            "image": image,
            "target": target,
            "views": image.new_empty((0, 0, *image.shape[1:])) if views is None else views,
            "meta": meta,
            "case": cases,
            "n_labeled": n_labeled,
        }

    def set_thread_id(self, thread_id: int) -> None:
        """Called by nnU-Net's worker processes."""
        if self.labeled is not None:
            self.labeled.set_thread_id(thread_id)
