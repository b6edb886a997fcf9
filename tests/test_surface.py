"""Surface distances against medpy, normalized surface Dice against surface-distance, and both against geometry."""

from itertools import product

import numpy as np
import pytest
import surface_distance
from medpy.metric import binary
from scipy.ndimage import gaussian_filter

from nnunet_semicon.evaluation.surface import boundary, distances, joint_box
from nnunet_semicon.evaluation.surfels import area_of_code, nsd, surfels

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


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 0.7, 0.4)])
def test_every_neighborhood_has_the_area_of_marching_cubes(spacing):
    from surface_distance.lookup_tables import create_table_neighbour_code_to_surface_area

    theirs = np.asarray(create_table_neighbour_code_to_surface_area(spacing))
    mirrored = [int(f"{code:08b}"[::-1], 2) for code in range(256)]  # their bits count the corners from the other end
    np.testing.assert_allclose(area_of_code(spacing), theirs[mirrored], atol=1e-9)


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
