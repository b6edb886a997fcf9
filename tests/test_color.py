"""Color images: recognized by name or normalization; strong views keep the colors of stained tissue plausible."""

from math import exp, log

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from nnunet_semicon.data import color, strong
from nnunet_semicon.data.strong import StrongView

RGB, Z = "RGBTo01Normalization", "ZScoreNormalization"
HEMATOXYLIN, EOSIN, DAB = color.DENSITIES.double().numpy()


@pytest.mark.parametrize(
    ("names", "schemes", "expected"),
    [
        (["R", "G", "B"], [Z] * 3, True),
        (["red", "Green", "BLUE"], [Z] * 3, True),
        (["rgb_to_0_1"] * 3, [RGB] * 3, True),
        (["x", "y", "z"], [RGB] * 3, True),
        (["B", "G", "R"], [Z] * 3, False),
        (["T1", "T2", "FLAIR"], [Z] * 3, False),
        (["R", "G", "B", "depth"], [Z] * 4, False),
        (["rgb_to_0_1"], [RGB], False),
        (["x", "y", "z"], [RGB, RGB, Z], False),
    ],
)
def test_color_is_recognized(names, schemes, expected):
    assert color.is_color(names, schemes) is expected


def tissue(rows: int, patch: tuple[int, ...]) -> tuple[np.ndarray, torch.Tensor]:
    """Return amounts (B, *S, 2) of hematoxylin and eosin, and the image (B, 3, *S) that they give, from 0 to 1."""
    generator = np.random.default_rng(0)
    amounts = generator.normal(size=(rows, *patch, 2))
    amounts = gaussian_filter(amounts, [0, *[2] * len(patch), 0])
    amounts = np.clip(amounts / amounts.std() + 0.5, 0, 2)
    amounts[:, 0, 0] = 0  # no tissue: white
    light = np.exp(-amounts @ np.stack([HEMATOXYLIN, EOSIN]))
    light[:, -1, -1] = 0  # dirt: black
    return amounts, torch.from_numpy(np.moveaxis(light, -1, 1)).float()


def test_factors_multiply_the_amounts_of_stains():
    amounts, images = tissue(4, (20, 24))
    factors = torch.tensor([[1.2, 1.0, 1.0], [1.0, 0.8, 1.0], [0.9, 1.1, 1.2], [1.0, 1.0, 1.0]])
    changed = color.change_stains(images, factors).numpy()
    dirt = np.zeros((20, 24), dtype=bool)
    dirt[-1, -1] = True
    for row, (h, e, _) in enumerate(factors.double().numpy()):
        expected = np.exp(-amounts[row] @ np.stack([h * HEMATOXYLIN, e * EOSIN]))
        np.testing.assert_allclose(changed[row].transpose(1, 2, 0)[~dirt], expected[~dirt], atol=1e-5)
    assert changed[:, :, 0, 0] == pytest.approx(1)


def test_the_change_of_stains_equals_a_loop_over_pixels():
    generator = np.random.default_rng(1)
    images = torch.from_numpy(generator.normal(size=(3, 3, 5, 6))).float()
    torch.manual_seed(0)
    factors = color.draw_stains(images)
    changed = color.change_stains(images, factors).numpy()
    for row, x in enumerate(images.double().numpy()):
        low, high = x.min((1, 2)), x.max((1, 2))
        for i, j in np.ndindex(5, 6):
            light = (x[:, i, j] - low) / (high - low)
            density = [-log(max(value, 1 / 255)) for value in light]
            amounts = np.linalg.solve(np.stack([HEMATOXYLIN, EOSIN, DAB]).T, density)
            mixed = (amounts * factors[row].double().numpy()) @ np.stack([HEMATOXYLIN, EOSIN, DAB])
            expected = low + (high - low) * [exp(-max(value, 0)) for value in mixed]
            np.testing.assert_allclose(changed[row, :, i, j], expected, atol=1e-4)


@pytest.mark.parametrize("patch", [(20, 24), (5, 8, 7), (1, 3), (1, 1)])
def test_values_stay_in_the_range_of_their_channel(patch):
    torch.manual_seed(0)
    images = torch.randn(6, 3, *patch)
    images[0, 1] = 0.3  # a constant channel
    before = images.clone()
    extremes = color.change_stains(images, torch.tensor([[0.5, 1.5, 0.5]]).expand(6, 3))
    assert torch.equal(images, before)
    lowest, highest = (extreme(images.flatten(2), dim=2) for extreme in (torch.amin, torch.amax))
    assert (extremes.flatten(2) >= lowest[..., None]).all()
    assert (extremes.flatten(2) <= highest[..., None] + 1e-5).all()
    assert torch.equal(extremes[0, 1], images[0, 1])
    unchanged = color.change_stains(images, torch.ones(6, 3))
    within = (highest - lowest).view(6, 3, *[1] * len(patch)) / 255 + 1e-5
    assert ((unchanged - images).abs() <= within).all()


def test_factors_are_those_of_the_strong_setting():
    torch.manual_seed(0)
    factors = color.draw_stains(torch.zeros(2000, 3, 1, 1))
    assert factors.shape == (2000, 3)
    assert (factors.min(), factors.max()) == pytest.approx((0.8, 1.2), abs=0.002)
    assert (torch.corrcoef(factors.T) - torch.eye(3)).abs().max() < 0.07


def test_one_map_and_one_gamma_serve_all_channels():
    # three channels with the same structure, scaled and shifted otherwise
    gray = tissue(32, (16, 20))[1][:, :1]
    images = gray * torch.tensor([1.0, 40.0, 0.5]).view(1, 3, 1, 1) + torch.tensor([0.0, -7.0, 3.0]).view(1, 3, 1, 1)

    def differences(view: StrongView) -> float:
        view.changes = [change for change in view.changes if change.apply in (strong.monotone_map, strong.gamma)]
        assert len(view.changes) == 2
        torch.manual_seed(0)
        mean, deviation = strong._statistics(images)
        changed = (view(images) - mean) / deviation
        assert (changed - (images - mean) / deviation).abs().max() > 1
        return float((changed - changed[:, :1]).abs().max())

    assert differences(StrongView((16, 20), decreasing=True, color=True)) < 1e-3
    assert differences(StrongView((16, 20), decreasing=True)) > 1


def test_color_views_are_the_same_however_nnunet_normalized():
    images = tissue(16, (24, 20))[1]
    mean, deviation = strong._statistics(images)
    view = StrongView((24, 20), cutout=True, color=True)
    torch.manual_seed(0)
    of_rgb = view(images)
    torch.manual_seed(0)
    of_z_score = view((images - mean) / deviation)
    torch.testing.assert_close(of_z_score * deviation + mean, of_rgb, atol=1e-3, rtol=0)
    assert (of_rgb - images).abs().flatten(1).amax(1).gt(0.05).all()


def test_stains_change_first_and_most_often():
    view = StrongView((12, 12), color=True)
    assert view.changes[0].apply is color.change_stains
    view.changes = view.changes[:1]
    images = tissue(1, (12, 12))[1].expand(3000, 3, 12, 12)
    torch.manual_seed(0)
    changed = ((view(images) - images).abs() > 1e-3).flatten(1).any(1)
    assert 0.76 < changed.float().mean() < 0.84


@pytest.mark.parametrize("patch", [(1, 1), (1, 8), (5, 9), (3, 4, 6)])
@pytest.mark.parametrize("value", [None, 0.0, 0.1])
def test_any_patch_gives_finite_views_that_keep_the_mask(patch, value):
    torch.manual_seed(0)
    images = torch.randn(4, 3, *patch) if value is None else torch.full((4, 3, *patch), value)
    images[:, :, 0] = 0
    view = StrongView(patch, decreasing=True, cutout=True, masked=True, color=True)
    for _ in range(8):
        views = view(images)
        assert torch.isfinite(views).all()
        assert (views[:, :, 0] == 0).all()
    assert view(images[:0]).shape == (0, 3, *patch)
