"""The unlabeled stream: where a slice lies, which slices are drawn, what the views show."""

import numpy as np
import pytest
import torch

from nnunet_semicon.data import strong
from nnunet_semicon.data.sampler import draw_cases, draw_scans
from nnunet_semicon.meta_labels.position import SliceAxis
from nnunet_semicon.training.semi_trainer import SemiTrainer
from tests.harness import configure, encoder_inputs, started, step
from tests.tiny import read_json, write_json

SPCON = "nnUNetTrainerSPCon"


def test_position_undoes_crop_and_resampling():
    # 20 original slices, nnU-Net kept 10 from slice 5 on and resampled them to 30
    axis = SliceAxis(original=20, crop_start=5, cropped=10, preprocessed=30)
    assert axis.fraction(0) == pytest.approx(0.25)
    assert axis.fraction(30) == pytest.approx(0.75)
    assert axis.partition(np.array([1.5, 15, 28.5]), 2).tolist() == [0, 1, 1]
    uncropped = SliceAxis(original=20, crop_start=0, cropped=20, preprocessed=20)
    for original_slice in range(5, 15):
        for partitions in (3, 5, 7):
            assert axis.partition(3 * (original_slice - 5) + 1.5, partitions) == uncropped.partition(
                original_slice + 0.5, partitions
            )


@pytest.mark.parametrize("slices", [3, 9, 10, 30])
def test_partitions_are_consecutive_and_nearly_equal(slices):
    axis = SliceAxis(slices, 0, slices, slices)
    groups = axis.partition(np.arange(slices) + 0.5, 3)
    assert (np.diff(groups) >= 0).all()
    sizes = np.bincount(groups, minlength=3)
    assert sizes.max() - sizes.min() <= 1


def test_scans_and_partitions_are_distinct():
    draws = draw_scans(["a", "b", "c", "d"], scans=3, per_scan=2, partitions=3)
    assert len({d.case for d in draws}) == 3
    for case in {d.case for d in draws}:
        assert len({d.partition for d in draws if d.case == case}) == 2
    assert len(draw_scans(["a"], scans=2, per_scan=1, partitions=3)) == 2
    assert {d.partition for d in draw_scans(["a", "b"], 2, 1, None)} == {None}
    assert len(draw_cases(["a", "b"], 5)) == 5


@pytest.mark.parametrize("parent", ["2d", "3d_fullres"])
def test_drawn_slices_lie_in_their_partition_of_the_original_scan(training, parent):
    trainer = started(SPCON, f"{parent}_short")
    loader = trainer.dataloader_train.data_loader
    seen = set()
    for _ in range(25):
        _, boxes, cases = loader.unlabeled.draw()
        positions = loader.meta.codes(cases, boxes)["position"]
        for box, case, position in zip(boxes, cases, positions, strict=True):
            cropped_away = 1 if case.endswith("frame02") else 0  # the first slice of these scans is empty
            center = float(box[0].double().mean()) + cropped_away
            assert position == min(max(int(center / 12 * 3), 0), 2)
        seen |= set(positions.tolist())
    assert seen == {0, 1, 2}


def test_patients_share_a_label_across_frames(training):
    loader = started(SPCON, "2d_short").dataloader_train.data_loader
    labels = {}
    for _ in range(25):
        batch = next(loader)
        cases = batch["case"][batch["n_labeled"] :]
        for case, code in zip(cases, batch["meta"]["patient"].tolist(), strict=True):
            labels.setdefault(case.split("_")[0], set()).add(code)
    assert all(len(codes) == 1 for codes in labels.values())
    assert len(set.union(*labels.values())) == len(labels) == 4  # validation patient003 is never drawn
    assert "patient003" not in labels


def strong_views(trainer, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Unlabeled images of a batch, and how they enter the student."""
    entered = encoder_inputs(trainer)
    step(trainer, batch)
    return batch["image"][batch["n_labeled"] :], entered[0].detach()[batch["n_labeled"] :]


@pytest.mark.parametrize("parent", ["2d", "3d_fullres"])
def test_strong_views_show_the_same_voxels_with_other_intensities(training, parent):
    configure(training, "long", f"{parent}_short", num_epochs=20)
    trainer = started("nnUNetTrainerMeanTeacher", "long")
    similarities = []
    for _ in range(10):
        weak, strong = strong_views(trainer, next(trainer.dataloader_train))
        assert not torch.equal(weak, strong)
        for a, b in zip(weak, strong, strict=True):
            similarities.append(abs(np.corrcoef(a.flatten(), b.flatten())[0, 1]))
    # flipped or rotated views of these phantoms correlate far less
    assert np.nanmedian(similarities) > 0.7


def test_workers_move_each_view_and_keep_its_intensities(training):
    trainer = started("nnUNetTrainerSPConPretrain", "2d_short")
    pipeline = trainer.dataloader_train.data_loader.unlabeled.views
    ramp = torch.arange(48.0 * 48).reshape(1, 48, 48)
    views = [pipeline(ramp, None) for _ in range(8)]
    assert all(len(view) == 2 for view in views)
    assert any(not torch.equal(view[0], view[1]) for view in views)
    flat = torch.full((1, 96, 96), 3.0)  # no view reaches beyond it
    assert all(torch.allclose(pipeline(flat, None), torch.tensor(3.0)) for _ in range(8))
    assert len(pipeline(ramp, None)) == 2
    assert started("nnUNetTrainerMeanTeacher", "2d_short").dataloader_train.data_loader.unlabeled.views.views == 1


def test_positions_are_counted_along_the_axis_that_the_plans_put_first(training, monkeypatch):
    # identity direction cosines: positions run along z as it is stored, against x
    monkeypatch.setattr(SemiTrainer, "_images_un", lambda self: [])  # preprocessed with the other axis: refused
    plans = read_json(training.plans_file)
    for transpose, backward in (([0, 1, 2], False), ([2, 0, 1], True)):
        write_json(training.plans_file, {**plans, "transpose_forward": transpose})
        unlabeled = started(SPCON, "2d_short").dataloader_train.data_loader.unlabeled
        assert unlabeled.pool.slice_axis(unlabeled.cases[0]).backward is backward


def test_the_keys_of_the_run_say_how_strong_views_are_made(training):
    def changes(name: str, **values) -> list:
        configure(training, name, "2d_short", **values)
        return [change.draw for change in started("nnUNetTrainerMeanTeacher", name).method.strong.changes]

    always = [strong.draw_gamma, strong.draw_sigma, strong.draw_scale, strong.draw_noise]
    assert changes("stock") == [strong.draw_knots, strong.draw_field, *always]
    assert changes("linear", nonlinear=False) == always
    assert changes("cut", nonlinear=False, cutout=True) == [*always, strong.draw_box]
    assert changes("inverted", decreasing_maps=True)[0] is strong.draw_decreasing_knots


def test_voxels_outside_nnunets_mask_stay_zero_in_strong_views(training, monkeypatch):
    monkeypatch.setattr(SemiTrainer, "_images_un", lambda self: [])  # preprocessed without masking: refused
    configure(training, "masked", "2d_short")
    plans = read_json(training.plans_file)
    plans["configurations"]["masked"]["use_mask_for_norm"] = [True]
    write_json(training.plans_file, plans)
    for configuration, stay in (("masked", True), ("2d_short", False)):
        trainer = started("nnUNetTrainerMeanTeacher", configuration)
        assert trainer.method.strong.masked is stay
        batch = next(trainer.dataloader_train)
        batch["image"][..., :9] = 0
        _, strongly = strong_views(trainer, batch)
        assert bool((strongly[..., :9] == 0).all()) is stay
