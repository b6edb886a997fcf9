"""The largest connected component of each class, which a teacher's label keeps (BCP, Bai et al., CVPR 2023).

Neighbors touch at a side, an edge or a corner. Deviation: with regions, each region keeps its own component.
"""

import torch
from scipy.ndimage import generate_binary_structure, label
from torch import Tensor


def largest_components(predicted: Tensor) -> Tensor:
    """Return a prediction in which each class has one component; the pixels of its others become background.

    Args:
        predicted: (B, 1, *S) classes, integers, 0 = background; or (B, R, *S) bool regions. Computed on the CPU.

    Returns:
        Of the same shape and dtype, on the same device. Of components of one size, the first one stays.
    """
    result = torch.zeros_like(predicted, device="cpu")
    for image, kept in zip(predicted.cpu(), result, strict=True):
        if predicted.dtype == torch.bool:
            for region, own in zip(image, kept, strict=True):
                own |= _largest(region)
        else:
            for number in image.unique().tolist():
                if number != 0:
                    kept[0][_largest(image[0] == number)] = number
    return result.to(predicted.device)


def _largest(mask: Tensor) -> Tensor:
    """Return the largest component of a mask (*S) bool on the CPU; an empty mask stays empty."""
    labels, count = label(mask.numpy(), generate_binary_structure(mask.dim(), mask.dim()))
    numbers = torch.from_numpy(labels)
    if count < 2:
        return mask
    sizes = numbers.flatten().bincount()
    return numbers == 1 + sizes[1:].argmax()
