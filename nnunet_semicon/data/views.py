"""Views of an unlabeled image: a weak one (nnU-Net's spatial pipeline) and strong ones (intensities destroyed).

Every transform of batchgeneratorsv2 first samples its parameters and then applies them; views that share their
geometry share the array that came out of the spatial transforms.
"""

from collections.abc import Sequence

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.blank_rectangle import BlankRectangleTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from torch import Tensor

GEOMETRY = (Convert3DTo2DTransform, SpatialTransform, Convert2DTo3DTransform, MirrorTransform)


def strong_intensity(patch_size: Sequence[int], cutout: bool) -> ComposeTransforms:
    """Return the intensity transforms of a strong view; none moves a voxel.

    Args:
        patch_size: voxels; a cutout is smaller than a quarter of it along every axis.
        cutout: overwrite one random box of each channel with 0 in half of the views.
    """
    chosen = [
        (0.8, MultiplicativeBrightnessTransform(BGContrast((0.6, 1.6)), synchronize_channels=False)),
        (0.8, ContrastTransform(BGContrast((0.6, 1.6)), preserve_range=False, synchronize_channels=False)),
        (0.5, GammaTransform(BGContrast((0.6, 1.7)), 0, synchronize_channels=False, p_per_channel=1, p_retain_stats=1)),
        # a kernel has to be narrower than the thinnest side of the patch: 9 voxels at sigma 1.5, 7 at 1.0
        (0.5, GaussianBlurTransform((0.5, 1.5 if min(patch_size) > 4 else 1.0), False, False)),
        (0.3, SimulateLowResolutionTransform((0.5, 1), False, True, None, None, 1)),
        (0.5, GaussianNoiseTransform((0, 0.2), p_per_channel=1, synchronize_channels=True)),
    ]
    if min(patch_size) <= 3:
        chosen = [entry for entry in chosen if not isinstance(entry[1], GaussianBlurTransform)]
    if cutout:
        sizes = tuple((1, max(2, size // 4)) for size in patch_size)
        chosen.append((0.5, BlankRectangleTransform(sizes, rectangle_value=0.0, num_rectangles=1)))
    return ComposeTransforms([RandomTransform(transform, apply_probability=p) for p, transform in chosen])


class ViewPipeline:
    """Makes V views of one cropped image.

    Args:
        training_transforms: nnU-Net's labeled training pipeline; its spatial transforms and its masking are reused.
        strong: intensity transforms of the views after the first.
        views: V >= 1.
        shared_geometry: all views show the same voxels (pixel-wise consistency) or each its own (image-wise contrast).
        weak_view: view 0 keeps its intensities.
    """

    def __init__(
        self,
        training_transforms: ComposeTransforms,
        strong: BasicTransform,
        views: int,
        shared_geometry: bool,
        weak_view: bool = True,
    ) -> None:
        self.geometry = ComposeTransforms([t for t in training_transforms.transforms if isinstance(t, GEOMETRY)])
        masking = [t for t in training_transforms.transforms if isinstance(t, MaskImageTransform)]
        self.mask: MaskImageTransform | None = masking[0] if masking else None
        self.strong = strong
        self.views = views
        self.shared_geometry = shared_geometry
        self.weak_view = weak_view

    @property
    def needs_mask(self) -> bool:
        """Whether nnU-Net normalized inside the nonzero mask, so that the outside has to be set to 0 again."""
        return self.mask is not None

    def __call__(self, image: Tensor, outside: Tensor | None) -> Tensor:
        """Return (V, C, *S) float32; view 0 is the weak one, if there is one.

        Args:
            image: (C, *S_initial) float32, the crop before the spatial transforms.
            outside: (1, *S_initial) int16, -1 outside the nonzero mask and 0 inside; None where it is not needed.
        """
        moved = self._move(image, outside)
        views = []
        for view in range(self.views):
            if view > 0 and not self.shared_geometry:
                moved = self._move(image, outside)
            # transforms work in place
            sample = {name: tensor.clone() for name, tensor in moved.items()}
            if view > 0 or not self.weak_view:
                sample["image"] = self.strong(image=sample["image"])["image"]
            if self.mask is not None:
                sample = self.mask(**sample)
            views.append(sample["image"])
        return torch.stack(views)

    def _move(self, image: Tensor, outside: Tensor | None) -> dict[str, Tensor]:
        sample = {"image": image.clone()}
        if outside is not None:
            sample["segmentation"] = outside.clone()
        return dict(self.geometry(**sample))
