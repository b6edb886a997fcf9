"""Supervised mix beyond the contract: it mixes labeled images with their true labels, and reads no unlabeled scan."""

import pytest
import torch

from nnunet_semicon.data.batch import TwoStreamBatch
from nnunet_semicon.methods.copy_paste import boxes
from tests.harness import SPLIT, configure, encoder_inputs, prepare, started, step

NAME = "nnUNetTrainerSupervisedMix"


@pytest.mark.parametrize("parent", ["2d", "3d_fullres"])
def test_a_step_computes_the_printed_loss(training, parent):
    configure(training, f"{parent}_mix", f"{parent}_short", labeled_per_step=3, paste_probability=1.0)
    trainer = started(NAME, f"{parent}_mix")
    method = trainer.method
    batch = TwoStreamBatch.from_dict(next(trainer.dataloader_train))
    n, images, labels = batch.n_labeled, batch.image, batch.target[0]
    for scale in batch.target:  # each image has a label of its own
        scale.copy_(torch.arange(n).view(-1, *[1] * (scale.ndim - 1)))
    assert n == len(images) == trainer.rows.labeled == 3
    assert trainer.rows.student_rows == 6
    with torch.no_grad():
        torch.manual_seed(2)
        masks = boxes(method.config, n, tuple(images.shape[2:]), 1.0)
        strong, others = method.strong(images), torch.randperm(n)
        mixed, target = [], []
        for row, (mask, other) in enumerate(zip(masks, others, strict=True)):
            mixed.append(torch.where(mask, images[other], strong[row]))
            target.append(torch.where(mask, labels[other], labels[row]))
        mixed, target = torch.stack(mixed), torch.stack(target)
        logits = trainer.plain_network(torch.cat([images, mixed]))
        supervised = trainer.loss([scale[:n] for scale in logits], batch.target)
        of_mixed = trainer.supervised_loss([scale[n:] for scale in logits], target)
    assert not torch.equal(target, labels), "the comparison compares nothing"

    entered = encoder_inputs(trainer)
    torch.manual_seed(2)
    loss = float(step(trainer, vars(batch))["loss"])
    assert torch.equal(entered[0], torch.cat([images, mixed]))
    assert loss == pytest.approx(float(supervised + of_mixed), rel=1e-5)


def test_no_unlabeled_case_is_read(tiny, tmp_path, monkeypatch):
    copy = prepare(tiny.fresh(tmp_path))
    copy.use(monkeypatch)
    arrays = [file for folder in copy.preprocessed_dataset.glob("*_unlabeled") for file in folder.glob("*.b2nd")]
    for case in SPLIT["unlabeled"]:
        arrays += copy.preprocessed_dataset.glob(f"nnUNetPlans_*/{case}*.b2nd")
    assert len(arrays) > 8
    for file in arrays:
        file.write_bytes(b"")  # whoever reads it gets an error
    trainer = started(NAME, "2d_short")
    for _ in range(3):
        batch = next(trainer.dataloader_train)
        assert set(batch["case"]) <= set(SPLIT["train"])
        assert torch.tensor(step(trainer, batch)["loss"]).isfinite()


def test_impossible_boxes_are_one_sentence(training):
    configure(training, "impossible", "2d_short", box_max=0.2)
    with pytest.raises(SystemExit, match=r"'box_min' is 0\.25 and 'box_max' is 0\.2, expected a smaller 'box_min'"):
        started(NAME, "impossible")
