"""The shared term: pseudo-labels of the teacher, boxes of labeled images, and what the student learns."""

from types import SimpleNamespace

import pytest
import torch

from nnunet_semicon.data.batch import TwoStreamBatch
from nnunet_semicon.losses.schedules import sigmoid_rampup
from nnunet_semicon.methods.copy_paste import partners
from nnunet_semicon.methods.self_training import SelfTraining, SelfTrainingConfig, rows_per_image, teacher_logits

LABELED, UNLABELED = 2, 5
SIZES = pytest.mark.parametrize("size", [(12, 10), (6, 8, 7)])
HALFWAY = 0.5


def batch_of(size: tuple[int, ...], ignore: bool = False, regions: bool = False) -> TwoStreamBatch:
    """Labeled images are 1 and 2 everywhere, unlabeled ones -1, -2, ...; a label says which image it is of."""
    values = torch.tensor([1.0, 2.0, -1.0, -2.0, -3.0, -4.0, -5.0])
    image = values.view(-1, 1, *[1] * len(size)).expand(-1, 1, *size).clone()
    if regions:
        target = torch.zeros(LABELED, 2 + ignore, *size, dtype=torch.bool)
        target[:, 0] = True
    else:
        target = image[:LABELED].to(torch.int16)
        if ignore:
            target[:, :, 0] = 3
    nothing = image.new_empty(0, UNLABELED, 1, *size)
    return TwoStreamBatch(image, [target], nothing, {}, ["x"] * len(values), LABELED)


def term_of(has_regions: bool = False, n_heads: int = 3, **values) -> SelfTraining:
    config = SelfTrainingConfig(**{"cutmix_probability": 0.0, "ema_decay": 0.99, "rampup": 0.0, **values})
    return SelfTraining(config, SimpleNamespace(has_regions=has_regions, n_heads=n_heads))


def sure_logits(size: tuple[int, ...], margin: float = 9.0) -> torch.Tensor:
    """Background everywhere, with a margin; the first voxels along axis 0 are undecided."""
    logits = torch.zeros(UNLABELED, 3, *size)
    logits[:, 0, 1:] = margin
    return logits


@SIZES
def test_pasted_content_has_its_true_label_and_weight_one(size):
    torch.manual_seed(0)
    batch = batch_of(size)
    strong = batch.unlabeled - 100
    lesson = term_of(paste_probability=1.0).lesson(batch, strong, sure_logits(size))
    assert lesson.images.shape == strong.shape
    assert lesson.target.shape == (UNLABELED, 1, *size)
    assert lesson.target.dtype == batch.target[0].dtype
    pasted = lesson.images[:, 0] > 0
    for row in range(UNLABELED):
        sources = lesson.images[row, 0][pasted[row]].unique()
        assert len(sources) == 1, "a row shows one labeled image"
        part = pasted[row].float().mean()
        assert 0.2 < part < 0.8
    assert torch.equal(lesson.target[:, 0][pasted].float(), lesson.images[:, 0][pasted])
    assert (lesson.weight[pasted] == 1).all()
    torch.testing.assert_close(lesson.images[:, 0][~pasted], strong[:, 0][~pasted])
    assert (lesson.target[:, 0][~pasted] == 0).all()
    decided = torch.ones(size, dtype=torch.bool)
    decided[0] = False
    assert torch.equal(lesson.weight[~pasted].bool(), decided.expand(UNLABELED, *size)[~pasted])


def test_every_labeled_image_is_pasted_equally_often():
    torch.manual_seed(0)
    assert sorted(partners(6, 3).tolist()) == [0, 0, 1, 1, 2, 2]
    assert len(set(partners(3, 5).tolist())) == 3


def test_about_the_asked_part_of_the_images_is_mixed():
    torch.manual_seed(0)
    term = term_of(paste_probability=0.5)
    batch = batch_of((12, 10))
    mixed = [
        (term.lesson(batch, batch.unlabeled, sure_logits((12, 10))).images > 0).flatten(1).any(1) for _ in range(80)
    ]
    assert 0.4 < torch.cat(mixed).float().mean() < 0.6


@SIZES
def test_both_directions_exchange_the_same_box(size):
    torch.manual_seed(0)
    batch = batch_of(size)
    lesson = term_of(paste_probability=1.0, paste_both=True).lesson(batch, batch.unlabeled, sure_logits(size))
    first, second = lesson.images.chunk(2)
    assert torch.equal(first > 0, second < 0)
    labels = lesson.target.chunk(2)[1]
    assert torch.equal(labels[second > 0].float(), second[second > 0])


def test_match_mixes_unlabeled_images_alone():
    torch.manual_seed(0)
    size = (12, 10)
    batch = batch_of(size)
    lesson = term_of(self_training="match", cutmix_probability=1.0).lesson(batch, batch.unlabeled, sure_logits(size))
    assert (lesson.images < 0).all()
    assert any(len(row.unique()) == 2 for row in lesson.images)
    assert all(len(row.unique()) <= 2 for row in lesson.images)


def test_ignored_pixels_of_labeled_images_stay_ignored():
    torch.manual_seed(0)
    size = (12, 10)
    lesson = term_of(paste_probability=1.0).lesson(
        batch_of(size, ignore=True), batch_of(size).unlabeled, sure_logits(size)
    )
    pasted = lesson.images[:, 0] > 0
    assert (lesson.target[:, 0, 0][pasted[:, 0]] == 3).all()
    assert pasted[:, 0].any()


def test_regions_with_an_ignore_channel():
    torch.manual_seed(0)
    size = (12, 10)
    batch = batch_of(size, ignore=True, regions=True)
    logits = torch.full((UNLABELED, 2, *size), -9.0)
    lesson = term_of(has_regions=True, n_heads=2, paste_probability=1.0).lesson(batch, batch.unlabeled, logits)
    assert lesson.target.shape == (UNLABELED, 3, *size)
    assert lesson.target.dtype == torch.bool
    assert torch.equal(lesson.target[:, 0], lesson.images[:, 0] > 0)
    assert not lesson.target[:, 1:].any()


def test_hard_targets_go_through_the_supervised_loss_with_the_ramp():
    torch.manual_seed(0)
    size = (12, 10)
    batch = batch_of(size)
    seen = []

    def supervised_loss(logits, target, weight=None):
        seen.append((logits, target, weight))
        return torch.tensor(2.0)

    term = term_of(lambda_reg=0.5, rampup=0.8)
    lesson = term.lesson(batch, batch.unlabeled, sure_logits(size))
    scales = [torch.zeros(UNLABELED, 3, *size), torch.zeros(UNLABELED, 3, 6, 5)]
    loss, scalars = term.loss(scales, lesson, supervised_loss, HALFWAY)
    assert float(loss) == pytest.approx(0.5 * sigmoid_rampup(0.5, 0.8) * 2.0)
    assert seen == [(scales, lesson.target, lesson.weight)]
    assert set(scalars) == set(term.scalar_names)
    assert float(scalars["kept_0"]) == pytest.approx(11 / 12)

    term_of(deep_pseudo_labels=False).loss(scales, lesson, supervised_loss, HALFWAY)
    assert seen[-1][0] is scales[0]


@pytest.mark.parametrize("kind", ["mean_teacher", "cross_entropy"])
def test_soft_targets_are_the_teachers_probabilities_on_the_strong_view(kind):
    size = (4, 6)
    batch = batch_of(size)
    term = term_of(self_training=kind)
    strong, teacher = batch.unlabeled + 1, torch.randn(UNLABELED, 3, *size)
    lesson = term.lesson(batch, strong, teacher)
    assert lesson.images is strong
    student = torch.randn(UNLABELED, 3, *size)
    p, q = student.softmax(1), teacher.softmax(1)
    expected = {"mean_teacher": (p - q).square(), "cross_entropy": -q * p.log()}[kind].sum(1).mean()
    loss, scalars = term.loss([student], lesson, None, HALFWAY)
    torch.testing.assert_close(loss, expected)
    assert set(scalars) == set(term.scalar_names) == {"self_training"}


@pytest.mark.parametrize("has_regions", [False, True])
@SIZES
def test_mirrored_teacher_averages_probabilities(size, has_regions):
    torch.manual_seed(0)
    images = torch.randn(2, 3, *size)
    ramp = torch.linspace(-2, 2, size[0]).view(-1, *[1] * (len(size) - 1))

    def teacher(x):
        return x + ramp

    plain, mirrored = (teacher_logits(teacher, images, has_regions, mirrored=m) for m in (False, True))
    torch.testing.assert_close(plain, teacher(images))
    nonlinearity = torch.sigmoid if has_regions else lambda x: x.softmax(1)
    expected = (nonlinearity(images + ramp) + nonlinearity(images - ramp)) / 2  # other axes change nothing
    torch.testing.assert_close(nonlinearity(mirrored), expected, atol=1e-5, rtol=1e-5)


def test_rows_of_the_student_for_each_unlabeled_image():
    rows = {kind: rows_per_image(SelfTrainingConfig(self_training=kind)) for kind in ("copy_paste", "match", "none")}
    assert rows == {"copy_paste": 1, "match": 1, "none": 0}
    assert rows_per_image(SelfTrainingConfig(paste_both=True)) == 2
