"""Windows of an image: their sums, who is drawn, what is pooled or cut out, each against a loop."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from nnunet_semicon.losses import windows
from nnunet_semicon.losses.windows import (
    LEAST_PIXELS,
    Drawn,
    WindowGrid,
    cosine_weights,
    cut_out,
    draw_windows,
    guidance_weights,
    pixels_in_windows,
    pooled,
)

SHAPES = [(16, 24), (13, 11), (4, 9, 10)]
K = 3


def boxes(grid: WindowGrid, shape) -> list[tuple[slice, ...]]:
    """The pixels of every window, in the order of their numbers: those whose cell is in it."""
    found = []
    for first in product(*(range(n) for n in grid.positions)):
        sides = []
        for origin, width, count, size in zip(first, grid.window, grid.cells, shape, strict=True):
            inside = [i for i in range(size) if origin <= i * count // size < origin + width]
            sides.append(slice(inside[0], inside[-1] + 1))
        found.append(tuple(sides))
    return found


def random_classes(shape, batch=2) -> torch.Tensor:
    return torch.randint(-1, K, (batch, *shape), generator=torch.Generator().manual_seed(0))


def random_maps(shape, channels=4, batch=2) -> torch.Tensor:
    return torch.rand(batch, channels, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("part", [0.1, 0.5, 1.0])
def test_sums_of_windows_are_those_of_a_loop(shape, part):
    grid, maps = WindowGrid.of(shape, part), random_maps(shape)
    places = boxes(grid, shape)
    expected = torch.stack([maps[(..., *box)].flatten(2).sum(2) for box in places], dim=2)
    torch.testing.assert_close(grid.window_sums(maps), expected)
    classes = random_classes(shape)
    counted = torch.stack([(classes == k)[:, None].double() for k in range(K)], dim=1)[:, :, 0]
    counts = torch.stack([counted[(..., *box)].flatten(2).sum(2) for box in places], dim=2)
    torch.testing.assert_close(pixels_in_windows(classes, K, grid), counts.float())
    origins = grid.origins(torch.arange(len(places)))
    assert [tuple(o) for o in origins.tolist()] == list(product(*(range(n) for n in grid.positions)))


@pytest.mark.parametrize("bits", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_entropy_and_confidence_are_means_over_the_window(shape, bits):
    grid, probabilities = WindowGrid.of(shape, 0.4), random_maps(shape, K)
    entropy, confidence = (guidance_weights(probabilities, grid, which, bits) for which in ("entropy", "confidence"))
    base = 2 if bits else math.e
    for number, box in enumerate(boxes(grid, shape)):
        for b, k in product(range(2), range(K)):
            values = probabilities[(b, k, *box)].flatten().tolist()
            bit = [-x * math.log(x, base) - (1 - x) * math.log(1 - x, base) for x in values]
            wanted = max(1 - sum(bit) / len(bit), 1e-3)
            assert entropy[b, k, number].item() == pytest.approx(wanted, abs=1e-9)
            assert confidence[b, k, number].item() == pytest.approx(sum(values) / len(values), abs=1e-9)


def test_cosine_compares_a_window_with_its_class():
    grid = WindowGrid.of((8, 8), 0.5)
    classes = torch.zeros(1, 8, 8, dtype=torch.int64)
    classes[:, :, 4:] = 1
    features = torch.zeros(1, 2, 8, 8)
    features[:, 0] = 1  # everywhere alike,
    features[:, :, :4, :4] = torch.tensor([0.0, 1.0])[:, None, None]  # but for a quarter of class 0
    weights = cosine_weights(features, classes, 2, grid)
    corner = weights[0, 0, 0].item()  # (1 + cos 45 degrees) / 2: half of the class looks like it
    assert corner == pytest.approx((1 + math.sqrt(0.5)) / 2, abs=1e-6)
    assert weights[0, 1, -1].item() == pytest.approx(1.0)
    assert weights[0, 0, -1].item() == pytest.approx(0.5)  # the window shows nothing of the class


def test_windows_are_drawn_in_proportion_to_their_weights():
    weights = torch.tensor([[[1.0, 3.0, 6.0], [5.0, 5.0, 0.001]], [[0.5, 0.5, 9.0], [2.0, 2.0, 2.0]]])
    pixels = torch.full((2, 2, 3), float(LEAST_PIXELS))
    pixels[1, 0, 2] = LEAST_PIXELS - 1  # too few: never drawn, whatever its weight
    torch.manual_seed(0)
    n = 40_000
    drawn = draw_windows(weights, pixels, torch.tensor([0, 1]).repeat(n))
    for k, expected in enumerate(([1, 3, 6, 0.5, 0.5, 0], [5, 5, 0.001, 2, 2, 2])):
        own = drawn.classes == k
        assert int(own.sum()) == n
        frequency = torch.bincount(drawn.image[own] * 3 + drawn.window[own], minlength=6) / n
        torch.testing.assert_close(frequency, torch.tensor(expected) / sum(expected), atol=0.01, rtol=0)


def test_the_probabilities_of_a_hand_made_map(monkeypatch):
    """A sure left half and a right half in doubt: windows there are wanted 1000 times less."""
    grid = WindowGrid.of((8, 8), 0.5)
    probabilities = torch.full((1, 1, 8, 8), 0.5)
    probabilities[..., :4] = 1.0
    seen = []
    monkeypatch.setattr(windows.torch, "multinomial", lambda p, n: seen.append(p) or p.argmax(1, keepdim=True))
    weights = guidance_weights(probabilities, grid, "entropy")
    drawn = draw_windows(weights, torch.full((1, 1, 25), 99.0), torch.tensor([0]))
    expected = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.001]).repeat(5)
    torch.testing.assert_close(seen[0][0], expected)
    assert drawn.window.item() % 5 == 0


def test_a_class_that_is_not_there_is_skipped():
    grid = WindowGrid.of((16, 16), 0.5)
    classes = torch.zeros(2, 16, 16, dtype=torch.int64)
    classes[0, :8] = 2
    weights = torch.ones(2, K, 25)
    drawn = draw_windows(weights, pixels_in_windows(classes, K, grid), torch.arange(30) % K)
    assert (drawn.classes[1::3] == -1).all()
    assert (drawn.classes[0::3] == 0).all()
    assert (drawn.classes[2::3] == 2).all()
    assert (drawn.image[2::3] == 0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_pooling_is_the_mean_over_the_pixels_of_the_class(shape):
    grid, features, classes = WindowGrid.of(shape, 0.4), random_maps(shape), random_classes(shape)
    places = boxes(grid, shape)
    drawn = Drawn(torch.tensor([0, 1, 1, 0]), torch.tensor([0, len(places) - 1, 0, 1]), torch.tensor([2, 0, 1, -1]))
    vectors, labels = pooled(features.requires_grad_(), classes, K, grid, drawn)
    assert labels.tolist() == [2, 0, 1, -1]
    for row in range(3):
        box = places[drawn.window[row]]
        own = classes[(drawn.image[row], *box)] == drawn.classes[row]
        torch.testing.assert_close(vectors[row], features[(drawn.image[row], slice(None), *box)][:, own].mean(dim=1))
    vectors[0].sum().backward()
    assert (features.grad[0, 0] != 0).sum() == (classes[(0, *places[0])] == 2).sum()


def test_a_coarse_map_without_the_class_gives_no_patch():
    grid = WindowGrid.of((4, 4), 0.5)
    classes = torch.zeros(1, 4, 4, dtype=torch.int64)
    drawn = Drawn(torch.tensor([0, 0]), torch.tensor([0, 0]), torch.tensor([0, 1]))
    vectors, labels = pooled(torch.ones(1, 2, 4, 4), classes, 2, grid, drawn)
    assert labels.tolist() == [0, -1]
    assert torch.isfinite(vectors).all()


@pytest.mark.parametrize("shape", [(16, 24), (8, 8, 16)])
def test_a_cut_out_is_the_window_scaled_up(shape):
    grid, images = WindowGrid.of(shape, 0.5), random_maps(shape, 2)
    classes = torch.zeros(2, *shape, dtype=torch.int64)
    number = len(boxes(grid, shape)) // 3
    drawn = Drawn(torch.tensor([1, 1]), torch.tensor([number, number]), torch.tensor([0, 1]))
    out = cut_out(images, classes, grid, drawn)
    assert out.shape == (2, 2, *shape)
    assert (out[1] == 0).all()  # no pixel of that class
    crop = images[(slice(1, 2), slice(None), *boxes(grid, shape)[number])]
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    expected = F.interpolate(crop, size=shape, mode=mode, align_corners=False)[0]
    inner = (slice(None), *(slice(2, -2) for _ in shape))  # at the border, neighbors outside of the window count
    torch.testing.assert_close(out[0][inner], expected[inner], atol=1e-5, rtol=0)
