"""Masks are boxes, halves or classes of the wanted size, and mixing takes each pixel from one image."""

from functools import reduce
from itertools import product

import pytest
import torch

from nnunet_semicon.losses.mixing import (
    chosen_rows,
    class_masks,
    halves,
    mix,
    only_rows,
    random_boxes,
    side_boxes,
)

SIZES = [(64, 56), (5, 40), (13, 7), (40, 5), (16, 17, 18), (3, 20, 31)]
DEGENERATE = [(1, 40), (40, 1), (1, 1), (1, 1, 1), (1, 9, 1), (2, 2), (2, 1, 3)]
COUNT = 400


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def projections(mask):
    """For each axis, where the mask shows anything."""
    axes = range(mask.dim())
    return [mask.any(dim=[other for other in axes if other != axis]) for axis in axes]


def is_box(mask):
    """The product of its projections, each without a gap."""
    shadows = projections(mask)
    solid = all(int(shadow.int().diff().abs().sum()) <= 2 for shadow in shadows)
    connected = all(len(torch.unique_consecutive(shadow[shadow.nonzero().min() :])) <= 2 for shadow in shadows)
    return solid and connected and torch.equal(mask, reduce(lambda a, b: a[..., None] & b, shadows))


def areas(masks):
    return masks.flatten(1).double().mean(dim=1)


def sides_of(mask):
    return [int(shadow.sum()) for shadow in projections(mask)]


@pytest.mark.parametrize("size", SIZES)
def test_random_boxes_are_boxes_with_an_area_in_the_range(size):
    low, high = 0.25, 0.6
    masks = random_boxes(COUNT, size, area=(low, high))
    assert masks.shape == (COUNT, *size)
    assert masks.dtype == torch.bool
    assert all(is_box(mask) for mask in masks)
    rounding = 0.5 / max(size) + 1e-9
    assert areas(masks).min() >= low - rounding
    assert areas(masks).max() <= high + rounding
    assert areas(masks).mean() == pytest.approx((low + high) / 2, abs=0.03)
    assert areas(masks).std() == pytest.approx((high - low) / 12**0.5, rel=0.2)  # of a uniform number


@pytest.mark.parametrize("size", [(400, 200), (100, 80, 120)])
def test_proportions_are_log_uniform_within_the_ratio(size):
    masks = random_boxes(COUNT if len(size) == 2 else 60, size, area=(0.1, 0.2), ratio=4.0)
    parts = torch.tensor([sides_of(mask) for mask in masks]) / torch.tensor(size)
    spread = (parts.amax(dim=1) / parts.amin(dim=1)).log2()
    assert spread.max() <= 2.1
    assert spread.mean() == pytest.approx(1.0, abs=0.25)
    longest = parts.argmax(dim=1).bincount(minlength=len(size)) / len(parts)
    assert longest.min() > 0.6 / len(size)


def test_equal_sides_with_ratio_one():
    for mask in random_boxes(50, (200, 100), area=(0.1, 0.3), ratio=1.0):
        long, short = sides_of(mask)
        assert long / 200 == pytest.approx(short / 100, abs=0.015)


def test_a_box_too_long_to_fit_keeps_its_area():
    masks = random_boxes(COUNT, (50, 60), area=(0.7, 0.7), ratio=8.0)
    assert torch.allclose(areas(masks), torch.tensor(0.7, dtype=torch.float64), atol=0.5 / 60 + 1e-9)
    assert any(sides_of(mask)[0] == 50 for mask in masks)


def test_the_whole_image_is_a_box_too():
    assert random_boxes(20, (5, 40), area=(1.0, 1.0)).all()


def test_boxes_lie_everywhere():
    drawn = random_boxes(2000, (20, 30), area=(0.1, 0.2))
    covered = drawn.double().mean(dim=0)
    assert torch.allclose(covered, covered.flip(0, 1), atol=0.06)
    assert covered[0, 0] > 0
    first = torch.stack([shadow.int().argmax(dim=1) for shadow in (drawn.any(2), drawn.any(1))], dim=1)
    assert first.amin(dim=0).tolist() == [0, 0]
    assert drawn[:, -1].any()
    assert drawn[:, :, -1].any()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_share_of_inverted_masks(share):
    masks = random_boxes(COUNT, (20, 22), area=(0.05, 0.1), inverted=share)
    inverted = areas(masks) > 0.5
    assert inverted.double().mean() == pytest.approx(share, abs=0.1)
    assert all(is_box(~mask) for mask in masks[inverted])
    assert all(is_box(mask) for mask in masks[~inverted])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [2 / 3, 0.5])
def test_side_boxes_cover_that_part_of_every_side(size, side):
    masks = side_boxes(60, size, side)
    assert all(is_box(mask) and sides_of(mask) == [max(1, round(side * n)) for n in size] for mask in masks)
    assert len(masks.flatten(1).unique(dim=0)) > 1  # at different places


@pytest.mark.parametrize("size", SIZES)
def test_halves_are_the_sides_of_a_cut_through_the_middle(size):
    expected = set()
    for axis, n in enumerate(size):
        coordinate = torch.arange(n).view([-1 if other == axis else 1 for other in range(len(size))]).expand(size)
        expected |= {tuple((coordinate < n // 2).flatten().tolist()), tuple((coordinate >= n // 2).flatten().tolist())}
    assert {tuple(mask.flatten().tolist()) for mask in halves(100, size)} == expected


@pytest.mark.parametrize("size", DEGENERATE)
def test_sides_of_one_voxel(size):
    drawn = random_boxes(30, size, area=(0.25, 0.6))
    assert all(is_box(mask) for mask in drawn)  # at least one voxel
    assert all(is_box(mask) for mask in side_boxes(30, size, 0.1))
    half = halves(30, size)
    assert half.shape == (30, *size)
    if max(size) > 1:
        assert half.flatten(1).any(dim=1).all()
        assert not half.flatten(1).all(dim=1).any()


@pytest.mark.parametrize("make", [lambda n: random_boxes(n, (4, 5), (0.2, 0.5)), lambda n: halves(n, (4, 5))])
def test_no_rows(make):
    assert make(0).shape == (0, 4, 5)


@pytest.mark.parametrize("size", [(6, 7), (4, 5, 6)])
def test_class_masks_show_half_of_the_classes_of_each_row(size):
    classes = torch.randint(0, 5, (40, *size), dtype=torch.int16)
    classes[0] = 3
    classes[1] = classes[1] % 2
    masks = class_masks(classes)
    for row, mask in zip(classes, masks, strict=True):
        present, shown = set(row.unique().tolist()), set(row[mask].unique().tolist())
        assert len(shown) == (len(present) + 1) // 2
        assert shown.isdisjoint(row[~mask].unique().tolist())
    assert masks[0].all()
    assert {tuple(row[mask].unique().tolist()) for row, mask in zip(classes[2:], masks[2:], strict=True)} > {(0, 1, 2)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int16, torch.bool])
@pytest.mark.parametrize("shape", [(3, 2, 4, 5), (3, 4, 5), (2, 2, 3, 4, 2), (2, 3, 4, 2)])
def test_mix_takes_each_pixel_from_one_of_both(shape, dtype):
    with_channels = shape in ((3, 2, 4, 5), (2, 2, 3, 4, 2))
    mask = torch.rand(shape[:1] + shape[2 if with_channels else 1 :]) < 0.5
    base, other = (torch.randint(0, 9, shape).to(dtype) for _ in range(2))
    mixed = mix(base, other, mask)
    assert mixed.dtype == dtype
    for index in product(*map(range, shape)):
        place = index[:1] + index[2:] if with_channels else index
        assert mixed[index] == (other if mask[place] else base)[index]


def test_rows_that_are_not_chosen_have_an_empty_mask():
    chosen = chosen_rows(COUNT, 0.7)
    assert chosen.double().mean() == pytest.approx(0.7, abs=0.08)
    masks = random_boxes(COUNT, (8, 9, 3), (0.2, 0.6))
    kept = only_rows(masks, chosen)
    assert torch.equal(kept[chosen], masks[chosen])
    assert not kept[~chosen].any()
    assert not chosen_rows(COUNT, 0.0).any()
    assert chosen_rows(COUNT, 1.0).all()


def test_one_seed_gives_the_same_masks():
    def draw():
        torch.manual_seed(3)
        boxes = random_boxes(5, (20, 21), (0.2, 0.6), inverted=0.5)
        classes = torch.arange(20 * 21).view(1, 20, 21) % 7
        return boxes, side_boxes(5, (20, 21), 0.5), halves(5, (20, 21)), class_masks(classes), chosen_rows(9, 0.5)

    for first, second in zip(draw(), draw(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_mask_of_the_cpu_mixes_images_of_a_gpu():
    images = torch.rand(2, 2, 1, 8, 9, device="cuda")
    mask = random_boxes(2, (8, 9), (0.2, 0.5))
    assert torch.equal(mix(*images, mask).cpu(), mix(*images.cpu(), mask))
