"""Each class keeps its largest connected component, and nothing else changes."""

import pytest
import torch

from nnunet_semicon.losses.components import largest_components

SIZES = pytest.mark.parametrize("size", [(9, 11), (5, 6, 7)])


def naive(classes: torch.Tensor) -> torch.Tensor:
    """Flood fill over Python sets, (*S) -> (*S)."""
    result = torch.zeros_like(classes)
    offsets = torch.cartesian_prod(*[torch.arange(-1, 2)] * classes.dim()).tolist()
    for number in set(classes.flatten().tolist()) - {0}:
        left = {tuple(place) for place in (classes == number).nonzero().tolist()}
        components = []
        while left:
            todo = [min(left)]
            left.discard(todo[0])
            found = []
            while todo:
                place = todo.pop()
                found.append(place)
                near = {tuple(p + o for p, o in zip(place, offset, strict=True)) for offset in offsets} & left
                left -= near
                todo += near
            components.append(found)
        for place in max(components, key=len):  # the first of several, in the order of their first pixels
            result[place] = number
    return result


@SIZES
@pytest.mark.parametrize("foreground", [0.1, 0.3, 0.6])
def test_equals_a_flood_fill(size, foreground):
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        classes = torch.randint(1, 4, (3, 1, *size), generator=generator)
        classes *= torch.rand((3, 1, *size), generator=generator) < foreground
        expected = torch.stack([naive(image[0])[None] for image in classes])
        assert torch.equal(largest_components(classes), expected)


def test_corners_connect_and_rows_do_not():
    classes = torch.zeros(2, 1, 6, 6, dtype=torch.int16)
    classes[0, 0, [0, 1, 2], [0, 1, 2]] = 2  # a diagonal of three
    classes[0, 0, 5, 4:] = 2
    classes[1, 0, 5, 4:] = 2
    kept = largest_components(classes)
    assert kept.dtype == torch.int16
    assert kept[0, 0].nonzero().tolist() == [[0, 0], [1, 1], [2, 2]]
    assert torch.equal(kept[1], classes[1])


def test_classes_do_not_take_pixels_from_each_other():
    classes = torch.ones(1, 1, 4, 7, dtype=torch.int64)
    classes[..., 2] = 2  # cuts class 1 into two columns and four
    kept = largest_components(classes)
    assert (kept[..., :2] == 0).all()
    assert torch.equal(kept[..., 2:], classes[..., 2:])


@SIZES
def test_regions_are_each_on_their_own(size):
    generator = torch.Generator().manual_seed(0)
    regions = torch.rand((2, 3, *size), generator=generator) < 0.25
    kept = largest_components(regions)
    assert kept.dtype == torch.bool
    for image in range(2):
        for region in range(3):
            assert torch.equal(kept[image, region].int(), naive(regions[image, region].int()))


@pytest.mark.parametrize("size", [(4, 5), (1, 1), (3, 1, 4)])
def test_empty_and_full_images_stay(size):
    for dtype in (torch.int64, torch.int16, torch.bool):
        for value in (0, 1):
            image = torch.full((2, 1, *size), value).to(dtype)
            before = image.clone()
            assert torch.equal(largest_components(image), before)
            assert torch.equal(image, before)
