"""Maps put a box back into its own place, each in another way, and move labels as they move images."""

from itertools import pairwise

import pytest
import torch

from nnunet_semicon.losses.geometry import axis_maps, moved, random_maps

COUNTS = {
    (4, 4): 8,
    (4, 6): 4,
    (3, 3, 3): 48,
    (2, 4, 4): 16,
    (2, 3, 4): 8,
    (1, 5): 2,
    (1, 5, 5): 8,
    (1, 1, 3): 2,
    (1, 1): 1,
    (1, 1, 1): 1,
}
SIZES = pytest.mark.parametrize("size", COUNTS)


def numbered(size: tuple[int, ...]) -> torch.Tensor:
    return torch.arange(torch.Size(size).numel()).view(1, *size)


@SIZES
def test_maps_differ_and_keep_the_shape_and_every_voxel(size):
    image = numbered(size)
    results = [move(image) for move in axis_maps(size)]
    assert len(results) == COUNTS[size]
    assert torch.equal(results[0], image), "the identity comes first"
    assert all(result.shape == image.shape for result in results)
    assert all(torch.equal(result.flatten().sort().values, image.flatten()) for result in results)
    assert len({tuple(result.flatten().tolist()) for result in results}) == len(results)


@SIZES
def test_each_map_is_undone_by_another_one(size):
    image = numbered(size)
    maps = axis_maps(size)
    for move in maps:
        assert sum(torch.equal(back(move(image)), image) for back in maps) == 1


def test_the_rotations_of_a_square_are_among_the_maps():
    image = numbered((5, 5))
    results = [move(image) for move in axis_maps((5, 5))]
    for quarters in range(4):
        assert sum(torch.equal(torch.rot90(image, quarters, (1, 2)), result) for result in results) == 1


def test_axes_of_a_stack_of_slices_stay_apart():
    image = numbered((2, 4, 4)) // 16  # the number of the slice
    for move in axis_maps((2, 4, 4)):
        result = move(image)
        assert all(len(part.unique()) == 1 for part in result[0])


@SIZES
def test_images_and_labels_move_alike(size):
    torch.manual_seed(0)
    images = torch.randn(6, 2, *size)
    labels = (images[:, :1] > 0).to(torch.int16)
    maps = random_maps(6, size)
    assert torch.equal((moved(images, maps)[:, :1] > 0).to(torch.int16), moved(labels, maps))
    assert moved(labels, maps).is_contiguous()


@pytest.mark.parametrize("size", [(4, 4), (3, 3, 3), (4, 6), (1, 1, 3)])
def test_every_map_but_the_identity_is_drawn_equally_often(size):
    torch.manual_seed(0)
    maps = axis_maps(size)
    drawn = random_maps(400 * len(maps), size)
    counts = torch.tensor([drawn.count(move) for move in maps])
    assert counts[0] == 0
    assert counts[1:].min() > 0.75 * len(drawn) / (len(maps) - 1)


def test_a_single_voxel_stays():
    image = torch.ones(3, 1, 1, 1)
    assert torch.equal(moved(image, random_maps(3, (1, 1))), image)


def test_a_seed_gives_the_same_maps():
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(random_maps(20, (4, 4)))
    assert [a == b for a, b in pairwise(draws)] == [True, False]
