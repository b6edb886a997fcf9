"""Surface distances against medpy, normalized surface Dice against surface-distance, and both against geometry."""

from itertools import product

import numpy as np
import pytest
import surface_distance
from medpy.metric import binary
from scipy.ndimage import gaussian_filter

from nnunet_semicon.evaluation.surface import boundary, distances, joint_box
from nnunet_semicon.evaluation.surface_dice import nsd, surfels

SHAPES = [(20, 30), (9, 14, 17)]


def blobs(shape, smooth, seed):
    """Return two masks that touch the border of the image and consist of several parts."""
    rng = np.random.default_rng(seed)
    return [gaussian_filter(rng.normal(size=shape), smooth) > 0.02 for _ in range(2)]


def between(prediction, reference, spacing):
    return distances(*(boundary(mask) * np.asarray(spacing, np.float64) for mask in (prediction, reference)))


def assert_equals_medpy(prediction, reference, spacing):
    ours = between(prediction, reference, spacing)
    theirs = [metric(prediction, reference, spacing) for metric in (binary.hd, binary.hd95, binary.asd, binary.assd)]
    assert [ours.hd, ours.hd95, ours.asd, ours.assd] == pytest.approx(theirs, abs=1e-6)


def assert_equals_surface_distance(prediction, reference, spacing, tolerance):
    theirs = surface_distance.compute_surface_distances(reference, prediction, spacing)
    expected = surface_distance.compute_surface_dice_at_tolerance(theirs, tolerance)
    assert nsd(prediction, reference, spacing, tolerance) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("smooth", [0, 1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_reference_implementations(shape, smooth, seed):
    prediction, reference = blobs(shape, smooth, seed)
    spacing = tuple(np.random.default_rng(seed).uniform(0.3, 5, len(shape)))
    assert_equals_medpy(prediction, reference, (1.0,) * len(shape))
    assert_equals_medpy(prediction, reference, spacing)
    for tolerance in (0.5, 1, 4):
        assert_equals_surface_distance(prediction, reference, spacing, tolerance)


def test_equals_them_on_real_masks(real_data):
    import SimpleITK

    files = sorted((real_data / "Dataset004_Hippocampus" / "labelsTr").glob("*.nii.gz"))[:6]
    masks = [SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))) for file in files]
    smallest = tuple(np.min([mask.shape for mask in masks], axis=0))
    masks = [mask[tuple(slice(size) for size in smallest)] for mask in masks]
    for first, second, label in product(masks[:3], masks[3:], (1, 2)):
        for spacing in ((1.0, 1.0, 1.0), (3.0, 0.7, 0.7)):
            assert_equals_medpy(first == label, second == label, spacing)
            assert_equals_surface_distance(first == label, second == label, spacing, 1.0)


def test_distances_of_two_voxels_are_those_of_geometry():
    prediction, reference = np.zeros((2, 9, 9, 9), bool)
    prediction[1, 1, 1] = reference[3, 4, 1] = True
    ours = between(prediction, reference, (2, 1, 1))
    assert [ours.hd, ours.hd95, ours.asd, ours.assd] == pytest.approx([5] * 4)


def test_asd_has_a_direction():
    # the reference is one voxel of the prediction: seen from the reference everything is near
    prediction, reference = np.zeros((2, 1, 11), bool)
    prediction[0, :] = True
    reference[0, 0] = True
    assert between(prediction, reference, (1, 1)).asd == pytest.approx(5)
    assert between(reference, prediction, (1, 1)).asd == 0
    assert between(prediction, reference, (1, 1)).assd == pytest.approx(55 / 12)


def test_boundary_is_what_has_a_face_neighbor_outside():
    mask = np.zeros((5, 5, 5), bool)
    mask[1:4, 1:4, 1:4] = True
    assert len(boundary(mask)) == 26
    assert [2, 2, 2] not in boundary(mask).tolist()
    assert len(boundary(np.ones((4, 4), bool))) == 12  # the border of the image is outside
    assert len(boundary(mask[:, :, 2:3])) == 9  # also of an image with a single slice


def test_joint_box_holds_both_masks():
    first, second = np.zeros((2, 6, 7), bool)
    first[1, 2] = second[4, 5] = True
    assert joint_box(first, second) == (slice(1, 5), slice(2, 6))


def test_crop_does_not_change_distances():
    prediction, reference = blobs((8, 8, 8), 1, 0)
    inside = [np.pad(mask, ((3, 2), (0, 4), (1, 1))) for mask in (prediction, reference)]
    cropped = [mask[joint_box(*inside)] for mask in inside]
    for metric in ("hd", "hd95", "asd", "assd"):
        assert getattr(between(*cropped, (1, 2, 3)), metric) == getattr(between(*inside, (1, 2, 3)), metric)


def test_surface_of_a_flat_side_is_its_area():
    # a plate through the whole image but for its rim: two sides of 8 x 8 voxels dominate
    mask = np.zeros((5, 102, 102), bool)
    mask[2, 1:-1, 1:-1] = True
    areas = surfels(mask, (1, 0.5, 2))[1]
    assert areas.sum() == pytest.approx(2 * 100 * 0.5 * 100 * 2, rel=0.03)


def test_nsd_of_shifted_plates():
    prediction, reference = np.zeros((2, 12, 40, 40), bool)
    prediction[1:9] = reference[3:11] = True
    assert nsd(prediction, prediction, (1, 1, 1), 0.1) == 1
    assert nsd(prediction, reference, (1, 1, 1), 1) < 0.4  # only the rim, where the image ends
    assert nsd(prediction, reference, (1, 1, 1), 2) == 1
    assert nsd(prediction, reference, (2, 1, 1), 2) < 0.5


# --- normalized surface Dice against formulas: side, radius, shift and tolerance in mm -------------------------------
# A surface element stands for half a voxel on either side of it, so half a voxel beyond the tolerance counts as near.


def centers_of(spacing, extent):
    return [(np.arange(round(extent / size)) + 0.5) * size for size in spacing]


def cube(start, side, spacing, extent=60):
    """Return a cube of ``side`` mm whose first corner lies at ``start`` (mm)."""
    lies_in = [(x >= first) & (x < first + side) for first, x in zip(start, centers_of(spacing, extent), strict=True)]
    return np.logical_and.reduce(np.meshgrid(*lies_in, indexing="ij"))


def ball(center, radius, spacing, extent=60):
    offsets = [x - middle for middle, x in zip(center, centers_of(spacing, extent), strict=True)]
    return sum(offset**2 for offset in np.meshgrid(*offsets, indexing="ij")) < radius**2


@pytest.mark.parametrize("spacing", [(1, 1, 1), (2, 0.5, 1)])
@pytest.mark.parametrize(("shift", "tolerance"), [(4, 2), (8, 2), (8, 6)])
def test_nsd_of_a_shifted_cube(spacing, shift, tolerance):
    side = 40
    prediction, reference = (cube((first, 10, 10), side, spacing) for first in (6, 6 + shift))
    # far are: the side outside of the other cube, the strips next to it, the middle of the side in the other cube
    reach = tolerance + np.divide(spacing, 2)
    far = side**2 + 4 * side * (shift - reach[0]) + (side - 2 * reach[1]) * (side - 2 * reach[2])
    assert nsd(prediction, reference, spacing, tolerance) == pytest.approx(1 - far / (6 * side**2), abs=0.005)
    assert nsd(prediction, reference, spacing, shift) == 1


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.25, 0.25)])
@pytest.mark.parametrize(("shift", "tolerance"), [(6, 2), (6, 4), (12, 3)])
def test_nsd_of_a_shifted_ball(spacing, shift, tolerance):
    radius, rest = 22, [30] * (len(spacing) - 1)
    prediction, reference = (ball((30 + side * shift / 2, *rest), radius, spacing) for side in (-1, 1))
    # a point of a sphere, at an angle to the shift, lies | |point - other center| - radius | from the other sphere
    reach = tolerance + spacing[0] / 2
    low, high = ((radius**2 + shift**2 - (radius + r) ** 2) / (2 * radius * shift) for r in (reach, -reach))
    # on a sphere the cosine of the angle is uniform, on a circle the angle itself
    expected = (high - low) / 2 if len(spacing) == 3 else (np.arccos(low) - np.arccos(high)) / np.pi
    assert nsd(prediction, reference, spacing, tolerance) == pytest.approx(expected, abs=0.02)
    assert nsd(prediction, reference, spacing, shift) == 1


def test_surface_of_one_voxel_is_a_regular_octahedron():
    mask = np.zeros((3, 3, 3), bool)
    mask[1, 1, 1] = True
    assert surfels(mask, (1, 1, 1))[1].sum() == pytest.approx(np.sqrt(3))
    assert surfels(mask[1], (1, 1))[1].sum() == pytest.approx(2 * np.sqrt(2))
    assert surfels(np.ones((1, 1, 1), bool), (2, 2, 2))[1].sum() == pytest.approx(4 * np.sqrt(3))


def test_nsd_of_two_voxels():
    prediction, reference = np.zeros((2, 9, 9, 9), bool)
    prediction[1, 1, 1] = reference[3, 1, 1] = True  # 4 mm apart from center to center, 2 mm from side to side
    assert nsd(prediction, reference, (2, 1, 1), 1.99) == 0
    assert nsd(prediction, reference, (2, 1, 1), 2) == 0.5
    assert nsd(prediction, reference, (2, 1, 1), 4) == 1
    assert nsd(prediction, prediction, (2, 1, 1), 0.1) == 1


@pytest.mark.parametrize("first", range(0, 40, 3))
def test_a_distance_equal_to_the_tolerance_is_agreement(first):
    prediction, reference = np.zeros((2, 50, 3), bool)
    prediction[first, 1] = reference[first + 5, 1] = True  # 5 * 0.4 mm apart, wherever they lie
    assert nsd(prediction, reference, (0.4, 1), 2) == 1
    assert nsd(prediction, reference, (0.4, 1), 1.999) == 0.5


def test_crop_does_not_change_nsd():
    prediction, reference = blobs((8, 8, 8), 1, 0)
    inside = [np.pad(mask, ((3, 2), (0, 4), (1, 1))) for mask in (prediction, reference)]
    cropped = [mask[joint_box(*inside)] for mask in inside]
    assert nsd(*cropped, (1, 2, 3), 1.5) == pytest.approx(nsd(*inside, (1, 2, 3), 1.5), abs=1e-12)
