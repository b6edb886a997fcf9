"""Strong views: every change reaches the logits of a network with instance normalization, and moves no voxel."""

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import nn

from nnunet_semicon.data import color, strong
from nnunet_semicon.data.strong import StrongView

PATCHES = [(40, 32), (12, 24, 20)]
CHANGES = {
    "monotone map": (strong.draw_knots, strong.monotone_map),
    "decreasing map": (strong.draw_decreasing_knots, strong.monotone_map),
    "smooth field": (strong.draw_field, strong.smooth_field),
    "gamma": (strong.draw_gamma, strong.gamma),
    "blur": (strong.draw_sigma, strong.blur),
    "low resolution": (strong.draw_scale, strong.low_resolution),
    "noise": (strong.draw_noise, torch.add),
    "cutout": (strong.draw_box, strong.cut_out),
    "stains": (color.draw_stains, color.change_stains),
}


def images_like_scans(rows: int, channels: int, patch: tuple[int, ...]) -> torch.Tensor:
    """z-scored images of a bright object with texture on a darker background, (B, C, *S)."""
    generator = np.random.default_rng(0)
    images = generator.normal(size=(rows, channels, *patch))
    for channel in images.reshape(-1, *patch):
        channel += 20 * gaussian_filter(generator.normal(size=patch), 4) * len(patch)
    axes = tuple(range(2, images.ndim))
    images -= images.mean(axes, keepdims=True)
    return torch.from_numpy(images / images.std(axes, keepdims=True)).float()


def small_unet(dims: int, channels: int) -> nn.Module:
    torch.manual_seed(7)
    network = PlainConvUNet(
        channels, 3, [8, 16, 32], getattr(nn, f"Conv{dims}d"), 3, [1, 2, 2], 1, 3, 1, conv_bias=True,
        norm_op=getattr(nn, f"InstanceNorm{dims}d"), norm_op_kwargs={"affine": True, "eps": 1e-5},
        nonlin=nn.LeakyReLU,
    )  # fmt: skip
    for module in network.modules():
        if isinstance(module, getattr(nn, f"InstanceNorm{dims}d")):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
        elif isinstance(module, getattr(nn, f"Conv{dims}d")):
            module.padding_mode = "replicate"  # a border of zeros would show a change of brightness
    return network.eval()


@torch.no_grad()
def change_of_logits(network: nn.Module, images: torch.Tensor, changed: torch.Tensor) -> float:
    """Median over rows of the logits' change, relative to their standard deviation."""
    before, after = network(images).flatten(1), network(changed).flatten(1)
    return float(((after - before).square().mean(1).sqrt() / before.std(dim=1)).median())


@pytest.mark.parametrize("patch", PATCHES)
def test_every_change_reaches_the_logits_of_an_instance_normalized_network(patch):
    images = images_like_scans(24, 3, patch)
    network = small_unet(len(patch), 3)
    torch.manual_seed(0)
    effects = {
        name: change_of_logits(network, images, apply(images, draw(images))) for name, (draw, apply) in CHANGES.items()
    }
    undone = {
        "brightness": change_of_logits(network, images, 1.5 * images),
        "brightness added": change_of_logits(network, images, images + 0.7),
        "contrast": change_of_logits(network, images, 0.6 * images + 0.2),
    }
    assert max(undone.values()) < 1e-3, undone
    assert min(effects.values()) > 0.05, effects


@pytest.mark.parametrize("patch", PATCHES)
def test_monotone_maps_keep_the_order_of_pixels_and_their_statistics(patch):
    torch.manual_seed(0)
    images = 30 * images_like_scans(6, 2, patch) + 100
    knots = strong.draw_knots(images)
    for mapped, sign in (
        (strong.monotone_map(images, knots), 1),
        (strong.monotone_map(images, knots.flip(-1)), -1),
    ):
        for before, after in zip(images.flatten(0, 1).flatten(1), mapped.flatten(0, 1).flatten(1), strict=True):
            sorted_after = sign * after[before.argsort()]
            assert (sorted_after.diff() > -1e-4 * before.std()).all()
            assert float(after.mean()) == pytest.approx(float(before.mean()), abs=1e-2)
            assert float(after.std()) == pytest.approx(float(before.std()), rel=1e-4)
            assert float((after - before).abs().max()) > 0.1 * float(before.std())


def test_increasing_and_decreasing_knots():
    torch.manual_seed(0)
    images = torch.zeros(400, 3, 4, 4)
    knots = strong.draw_knots(images)
    assert knots.shape == (400, 3, 7)
    assert (knots[..., 0] == 0).all()
    assert (knots[..., -1] == 1).all()
    assert (knots.diff(dim=-1) >= 0).all()
    assert knots[..., 1:-1].mean((0, 1)).numpy() == pytest.approx(np.arange(1, 6) / 6, abs=0.02)
    differences = strong.draw_decreasing_knots(images).diff(dim=-1)
    decreases = (differences <= 0).all(-1)
    assert (decreases | (differences >= 0).all(-1)).all()
    assert 0.45 < decreases.float().mean() < 0.55


def with_statistics(changed: np.ndarray, of: np.ndarray) -> np.ndarray:
    return (changed - changed.mean()) / changed.std() * of.std() + of.mean()


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("decreasing", [False, True])
def test_the_map_equals_numpy(patch, decreasing):
    torch.manual_seed(1)
    images = images_like_scans(3, 2, patch)
    knots = strong.draw_knots(images)
    knots = knots.flip(-1) if decreasing else knots
    mapped = strong.monotone_map(images, knots).numpy()
    for row in range(3):
        for channel in range(2):
            x = images[row, channel].double().numpy()
            y = np.interp(x, np.linspace(x.min(), x.max(), 7), knots[row, channel].double().numpy())
            np.testing.assert_allclose(mapped[row, channel], with_statistics(y, x), atol=2e-4)


@pytest.mark.parametrize("patch", PATCHES)
def test_gamma_equals_numpy(patch):
    torch.manual_seed(1)
    images = 5 * images_like_scans(3, 2, patch) - 2
    exponents = strong.draw_gamma(images)
    changed = strong.gamma(images, exponents).numpy()
    for row in range(3):
        for channel in range(2):
            x = images[row, channel].double().numpy()
            y = ((x - x.min()) / (x.max() - x.min())) ** float(exponents[row, channel])
            np.testing.assert_allclose(changed[row, channel], with_statistics(y, x), atol=1e-3)


def test_half_of_the_exponents_are_below_one():
    torch.manual_seed(0)
    exponents = strong.draw_gamma(torch.zeros(2000, 2, 1, 1))
    assert exponents.min() >= 0.6
    assert exponents.max() <= 1.7
    assert 0.47 < (exponents < 1).float().mean() < 0.53


@pytest.mark.parametrize("patch", [*PATCHES, (9, 5), (4, 16, 16), (3, 5, 20)])
def test_the_blur_equals_scipy(patch):
    torch.manual_seed(1)
    images = images_like_scans(3, 2, patch)
    sigma = torch.tensor([0.5, 1.0, 1.5])
    blurred = strong.blur(images, sigma).numpy()
    axes = [axis for axis, side in enumerate(patch) if side > 4]
    for row in range(3):
        for channel in range(2):
            x = images[row, channel].double().numpy()
            # scipy calls the reflection at the centers of the border voxels "mirror"
            expected = gaussian_filter(x, float(sigma[row]), mode="mirror", radius=4, axes=axes)
            np.testing.assert_allclose(blurred[row, channel], expected, atol=1e-5)


@pytest.mark.parametrize("patch", [*PATCHES, (1, 7), (2, 3, 5)])
def test_low_resolution_equals_numpy(patch):
    torch.manual_seed(1)
    images = images_like_scans(3, 2, patch)
    scale = torch.tensor([0.5, 0.73, 1.0])
    changed = strong.low_resolution(images, scale).numpy()
    for row in range(3):
        coarse_shape = [max(1, round(side * float(scale[row]))) for side in patch]
        taken = np.ix_(
            *[
                ((np.arange(coarse) + 0.5) * side / coarse).astype(int)
                for side, coarse in zip(patch, coarse_shape, strict=True)
            ]
        )
        places = np.meshgrid(
            *[(np.arange(side) + 0.5) * coarse / side - 0.5 for side, coarse in zip(patch, coarse_shape, strict=True)],
            indexing="ij",
        )
        for channel in range(2):
            coarse = images[row, channel].double().numpy()[taken]
            expected = map_coordinates(coarse, places, order=1, mode="nearest")
            np.testing.assert_allclose(changed[row, channel], expected, atol=1e-5)
    assert torch.equal(images[2], torch.from_numpy(changed[2]))


@pytest.mark.parametrize("patch", PATCHES)
def test_the_field_is_smooth_positive_and_the_same_for_all_channels(patch):
    torch.manual_seed(0)
    grid = strong.draw_field(torch.zeros(50, 2, *patch))
    field = strong.smooth_field(torch.ones(50, 2, *patch), grid)
    assert torch.equal(field[:, 0], field[:, 1])
    assert (field > 0).all()
    assert 0.25 < float(grid.std()) < 0.35
    corner = (slice(None), 0, *[0] * len(patch))
    assert torch.allclose(field[corner], grid[corner].exp(), rtol=1e-4)
    for axis in range(2, field.ndim):
        assert field.log().diff(dim=axis).abs().max() < 4 / patch[axis - 2]


def test_noise_has_another_deviation_in_each_image_and_is_independent_in_each_voxel():
    torch.manual_seed(0)
    noise = strong.draw_noise(torch.zeros(500, 2, 16, 16))
    deviations = noise.flatten(1).std(dim=1)
    assert deviations.max() < 0.23
    assert 0.09 < deviations.mean() < 0.11
    assert deviations.min() < 0.02
    pairs = torch.stack([noise[:, 0].flatten(), noise[:, 1].flatten(), noise[:, 0].roll(1, dims=-1).flatten()])
    assert (torch.corrcoef(pairs) - torch.eye(3)).abs().max() < 0.02


@pytest.mark.parametrize("patch", [*PATCHES, (1, 2), (3, 5, 1)])
def test_boxes_have_up_to_half_of_each_side(patch):
    torch.manual_seed(0)
    images = torch.ones(300, 2, *patch)
    boxes = strong.draw_box(images)
    sizes = boxes[..., 1] - boxes[..., 0]
    assert boxes.min() >= 0
    assert (boxes[..., 1] <= torch.tensor(patch)).all()
    assert sizes.min() == 1
    assert sizes.amax(0).tolist() == [max(1, side // 2) for side in patch]
    assert boxes[..., 1].amax(0).tolist() == list(patch)
    blank = strong.cut_out(images, boxes) == 0
    for row, box in zip(blank, boxes.tolist(), strict=True):
        expected = torch.zeros(patch, dtype=torch.bool)
        expected[tuple(slice(first, beyond) for first, beyond in box)] = True
        assert torch.equal(row, expected.expand_as(row))


@pytest.mark.parametrize("patch", [*PATCHES, (1, 1), (1, 8), (2, 3), (5, 1, 2), (3, 32, 32), (1, 1, 1), (2, 5, 9)])
@pytest.mark.parametrize("cutout", [False, True])
def test_views_of_any_patch_are_finite_new_and_reproducible(patch, cutout):
    images = torch.randn(5, 2, *patch)
    before = images.clone()
    view = StrongView(patch, decreasing=True, cutout=cutout, masked=cutout)
    torch.manual_seed(3)
    views = [view(images) for _ in range(8)]
    torch.manual_seed(3)
    again = [view(images) for _ in range(8)]
    assert torch.equal(torch.stack(views), torch.stack(again))
    assert torch.equal(images, before)
    assert torch.isfinite(torch.stack(views)).all()
    assert all(v.shape == images.shape and v.data_ptr() != images.data_ptr() for v in views)
    assert any(not torch.equal(v, images) for v in views)


def test_no_gradient_and_no_rows():
    view = StrongView((8, 8), cutout=True, masked=True)
    assert not view(torch.randn(4, 1, 8, 8, requires_grad=True)).requires_grad
    assert view(torch.randn(0, 1, 8, 8)).shape == (0, 1, 8, 8)


@pytest.mark.parametrize("value", [0.0, 0.1, -3e4])
def test_constant_images_stay_without_field_noise_and_cutout(value):
    images = torch.full((4, 2, 9, 11), value)
    torch.manual_seed(0)
    for name in ("monotone map", "decreasing map", "gamma"):
        draw, apply = CHANGES[name]
        assert torch.equal(apply(images, draw(images)), images), name
    for name in ("blur", "low resolution"):
        draw, apply = CHANGES[name]
        torch.testing.assert_close(apply(images, draw(images)), images)
    assert torch.isfinite(StrongView((9, 11), cutout=True)(images)).all()


def test_half_precision_is_computed_in_float32():
    images = (1000 * images_like_scans(8, 1, (24, 24))).half()
    view = StrongView((24, 24), cutout=True)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = view(images)
    torch.manual_seed(0)
    assert half.dtype is torch.float16
    assert torch.equal(half, view(images.float()).half())


def test_voxels_outside_the_mask_stay_zero():
    torch.manual_seed(0)
    images = images_like_scans(16, 2, (24, 24))
    images[:, :, :, :7] = 0
    images[:, 0, 9, 9] = 0  # zero in one channel alone: inside
    views = StrongView((24, 24), masked=True)(images)
    assert (views[:, :, :, :7] == 0).all()
    assert (views[:, 0, 9, 9] != 0).any()
    assert (StrongView((24, 24))(images)[:, :, :, :7] != 0).any()


def test_each_change_meets_its_part_of_the_rows():
    torch.manual_seed(0)
    images = images_like_scans(1, 1, (12, 12)).expand(3000, 1, 12, 12)
    view = StrongView((12, 12), cutout=True)
    changes, parts = list(view.changes), []
    for change in changes:
        view.changes = [change]
        parts.append(float((view(images) != images).flatten(1).any(1).float().mean()))
    # a scale near 1 changes nothing on twelve voxels
    assert parts == pytest.approx([0.8, 0.4, 0.5, 0.5, 0.3, 0.5, 0.5], abs=0.04)
    assert len(StrongView((12, 12), nonlinear=False).changes) == 4
    assert len(StrongView((3, 4)).changes) == 5  # no side to blur


def test_changes_are_drawn_from_the_global_generator_alike_whatever_the_noise_draws():
    torch.manual_seed(0)
    view = StrongView((6, 6))
    view.changes = [change for change in view.changes if change.apply is torch.add]
    images = torch.zeros(4, 1, 6, 6)
    view(images)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    view(torch.zeros(4, 3, 60, 60))  # more noise, as many parameters
    assert torch.equal(torch.get_rng_state(), state)
