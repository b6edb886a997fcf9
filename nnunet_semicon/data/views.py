"""Views of an unlabeled image: nnU-Net's spatial transforms, drawn anew for each; intensities stay."""

import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from torch import Tensor

GEOMETRY = (Convert3DTo2DTransform, SpatialTransform, Convert2DTo3DTransform, MirrorTransform)


class ViewPipeline:
    """Makes V views of one cropped image, each in a geometry of its own.

    Args:
        training_transforms: nnU-Net's labeled training pipeline; its spatial transforms and its masking are reused.
        views: V >= 1.
    """

    def __init__(self, training_transforms: ComposeTransforms, views: int) -> None:
        self.geometry = ComposeTransforms([t for t in training_transforms.transforms if isinstance(t, GEOMETRY)])
        masking = [t for t in training_transforms.transforms if isinstance(t, MaskImageTransform)]
        self.mask: MaskImageTransform | None = masking[0] if masking else None
        self.views = views

    @property
    def needs_mask(self) -> bool:
        """Whether nnU-Net normalized inside the nonzero mask, so that the outside has to be set to 0 again."""
        return self.mask is not None

    def __call__(self, image: Tensor, outside: Tensor | None) -> Tensor:
        """Return (V, C, *S) float32.

        Args:
            image: (C, *S_initial) float32, the crop before the spatial transforms.
            outside: (1, *S_initial) int16, -1 outside the nonzero mask and 0 inside; None where it is not needed.
        """
        return torch.stack([self._view(image, outside) for _ in range(self.views)])

    def _view(self, image: Tensor, outside: Tensor | None) -> Tensor:
        # transforms work in place
        sample = {"image": image.clone()}
        if outside is not None:
            sample["segmentation"] = outside.clone()
        sample = dict(self.geometry(**sample))
        if self.mask is not None:
            sample = self.mask(**sample)
        return sample["image"]
