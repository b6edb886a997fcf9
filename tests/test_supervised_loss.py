"""nnU-Net's loss with a weight per pixel: equal to stock without one, over all scales, and in two processes."""

import multiprocessing

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss, DC_and_topk_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss, SoftDiceLoss
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss

from nnunet_semicon.errors import UserError
from nnunet_semicon.losses.masked import weighted_dice_ce
from nnunet_semicon.training.supervised_loss import NnunetLoss
from tests.harness import make_trainer, started, step

CLASSES = 3
IGNORE = 3
FACTORS = (2 / 3, 1 / 3, 0.0)
SIZES = {"2d": (24, 20), "3d": (8, 12, 8)}
KINDS = ("softmax", "softmax with ignore label", "regions", "regions with ignore label")
every_kind = pytest.mark.parametrize("kind", KINDS)
every_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)


def ignore_label_of(kind):
    return IGNORE if "ignore" in kind else None


def stock_loss(kind, batch_dice=True, ddp=False, factors=FACTORS):
    """What nnU-Net's trainer builds."""
    dice = {"batch_dice": batch_dice, "smooth": 1e-5, "ddp": ddp}
    if kind.startswith("regions"):
        ignore = "ignore" in kind
        loss = DC_and_BCE_loss({}, {"do_bg": True, **dice}, use_ignore_label=ignore)
    else:
        ignore = ignore_label_of(kind)
        how = {"ignore_label": ignore, "dice_class": MemoryEfficientSoftDiceLoss}
        loss = DC_and_CE_loss({"do_bg": False, **dice}, {}, **how)
    return DeepSupervisionWrapper(loss, factors) if factors else loss


def full_target(kind, size, rows=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ignore = "ignore" in kind
    if kind.startswith("regions"):
        return torch.rand(rows, CLASSES + ignore, *size, generator=generator) < 0.3
    return torch.randint(0, CLASSES + ignore, (rows, 1, *size), generator=generator, dtype=torch.int16)


def at_scales(target, scales=(1, 0.5, 0.25)):
    """The list that nnU-Net's augmentation makes of every row."""
    rows = [DownsampleSegForDSTransform(scales)(segmentation=row)["segmentation"] for row in target]
    return [torch.stack(scale) for scale in zip(*rows, strict=True)]


def logits_at_scales(size, rows=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shapes = [[round(n * scale) for n in size] for scale in (1, 0.5, 0.25)]
    return [torch.randn(rows, CLASSES, *shape, generator=generator).requires_grad_() for shape in shapes]


def gradients(loss, logits):
    return torch.autograd.grad(loss, logits, allow_unused=True)


@every_kind
@every_size
def test_without_a_weight_it_is_stock_to_the_last_bit(kind, size):
    stock = stock_loss(kind)
    loss = NnunetLoss(stock, ignore_label_of(kind))
    logits, target = logits_at_scales(size), full_target(kind, size)
    targets = at_scales(target)
    expected = stock(logits, targets)
    assert torch.equal(loss(logits, targets), expected)
    assert torch.equal(loss(logits, target), expected)
    for one in (target, targets):
        assert torch.equal(loss(logits[0], one), stock.loss(logits[0], target))


@every_kind
@every_size
@pytest.mark.parametrize("batch_dice", [False, True])
def test_with_all_weights_one_it_equals_stock_over_the_scales(kind, size, batch_dice):
    stock = stock_loss(kind, batch_dice)
    loss = NnunetLoss(stock, ignore_label_of(kind))
    logits, target = logits_at_scales(size), full_target(kind, size)
    targets, ones = at_scales(target), torch.ones(2, *size)
    expected = stock(logits, targets)
    for one in (target, targets):
        weighted = loss(logits, one, ones)
        torch.testing.assert_close(weighted, expected)
        for ours, nnunets in zip(gradients(weighted, logits), gradients(stock(logits, targets), logits), strict=True):
            assert (ours is None) is (nnunets is None)  # of a scale without a factor
            if ours is not None:
                torch.testing.assert_close(ours, nnunets, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(loss(logits[0], one, ones), stock.loss(logits[0], target))


@every_kind
@every_size
def test_the_weight_is_resized_like_the_target(kind, size):
    loss = NnunetLoss(stock_loss(kind), ignore_label_of(kind))
    logits, target = logits_at_scales(size), full_target(kind, size)
    weight = torch.rand(2, *size, generator=torch.Generator().manual_seed(2))
    how = {
        "has_regions": kind.startswith("regions"),
        "ignore_label": ignore_label_of(kind),
        "batch_dice": True,
        "do_bg": kind.startswith("regions"),
        "smooth": 1e-5,
    }
    weights = [scale[:, 0] for scale in at_scales(weight[:, None])]
    scales = list(zip(FACTORS, logits, at_scales(target), weights, strict=True))[:2]
    expected = sum(factor * weighted_dice_ce(z, y, w, **how) for factor, z, y, w in scales)
    assert torch.equal(loss(logits, target, weight), expected)
    mask = weight > 0.5
    assert torch.equal(loss(logits, target, mask), loss(logits, target, mask.float()))
    assert loss(logits, target, weight) != loss(logits, target, mask)


@every_kind
def test_pixels_without_weight_teach_nothing(kind):
    size = SIZES["2d"]
    loss = NnunetLoss(stock_loss(kind), ignore_label_of(kind))
    logits, target = logits_at_scales(size), full_target(kind, size)
    weight = torch.ones(2, *size)
    weight[:, :8] = 0
    for scale, gradient in zip((1, 2), gradients(loss(logits, target, weight), logits), strict=False):
        assert not gradient[:, :, : 8 // scale].any()
        assert gradient[:, :, 8 // scale :].any()


def test_settings_are_those_of_nnunets_object():
    size = SIZES["2d"]
    logits, target, ones = logits_at_scales(size), full_target("softmax", size), torch.ones(2, *size)
    stock = stock_loss("softmax")
    stock.loss.weight_dice, stock.loss.weight_ce = 0, 0.5  # before or after our object is made
    loss = NnunetLoss(stock, None)
    torch.testing.assert_close(loss(logits, target, ones), stock(logits, at_scales(target)))
    stock.loss.weight_dice, stock.loss.dc.smooth = 3.0, 20.0
    torch.testing.assert_close(loss(logits, target, ones), stock(logits, at_scales(target)))


def test_a_compiled_dice_keeps_its_settings():
    size = SIZES["2d"]
    stock = stock_loss("softmax")
    logits, target, ones = logits_at_scales(size), full_target("softmax", size), torch.ones(2, *size)
    expected = stock(logits, at_scales(target))
    stock.loss.dc = torch.compile(stock.loss.dc)  # as nnU-Net does on a GPU; never run here
    torch.testing.assert_close(NnunetLoss(stock, None)(logits, target, ones), expected)


@every_kind
def test_without_deep_supervision(kind):
    size = SIZES["2d"]
    stock = stock_loss(kind, factors=None)
    loss = NnunetLoss(stock, ignore_label_of(kind))
    logits, target = logits_at_scales(size)[0], full_target(kind, size)
    assert torch.equal(loss(logits, target), stock(logits, target))
    torch.testing.assert_close(loss(logits, target, torch.ones(2, *size)), stock(logits, target))


class Focal(DC_and_CE_loss):
    """A user's formula under nnU-Net's class."""


def others():
    dice = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    how = {"dice_class": MemoryEfficientSoftDiceLoss}
    return {
        "DC_and_topk_loss": DC_and_topk_loss(dice, {"k": 10}),
        "RobustCrossEntropyLoss": RobustCrossEntropyLoss(),
        "SoftDiceLoss": DC_and_CE_loss(dice, {}, dice_class=SoftDiceLoss),
        "Focal": Focal(dice, {}, **how),
        "DC_and_CE_loss": DC_and_CE_loss(dice, {"label_smoothing": 0.1}, **how),
        "DC_and_CE_loss ": DC_and_CE_loss(dice, {"weight": torch.tensor([1.0, 2.0, 2.0])}, **how),
        "DC_and_BCE_loss": DC_and_BCE_loss({"pos_weight": torch.tensor(2.0)}, dice),
    }


@pytest.mark.parametrize("name", others())
@pytest.mark.parametrize("wrapped", [False, True])
def test_another_loss_is_called_without_a_weight_and_refused_with_one(name, wrapped):
    size = SIZES["2d"]
    inner = others()[name]
    stock = DeepSupervisionWrapper(inner, FACTORS) if wrapped else inner
    kind = "regions" if "BCE" in name else "softmax"
    logits, target = logits_at_scales(size), full_target(kind, size)
    logits = logits if wrapped else logits[0]
    loss = NnunetLoss(stock, None)
    assert torch.equal(loss(logits, target), stock(logits, at_scales(target) if wrapped else target))
    with pytest.raises(UserError, match=name.strip() + ".* expected nnU-Net's own Dice and cross-entropy"):
        loss(logits, target, torch.ones(2, *size))


def test_the_loss_of_a_trainer(training):
    trainer = started("nnUNetTrainerMeanTeacher", "2d_short")
    batch = next(trainer.dataloader_train)
    n = batch["n_labeled"]
    with torch.no_grad():
        logits = trainer.network(batch["image"][:n])
        expected = trainer.loss(logits, batch["target"])
        ones = torch.ones(n, *logits[0].shape[2:])
        assert torch.equal(trainer.supervised_loss(logits, batch["target"]), expected)
        assert torch.equal(trainer.supervised_loss(logits, batch["target"][0]), expected)
        torch.testing.assert_close(trainer.supervised_loss(logits, batch["target"][0], ones), expected)


def test_a_users_loss_trains_and_its_refusal_is_one_sentence(training, monkeypatch):
    trainer = make_trainer("nnUNetTrainerSupervisedControl", "2d_short")
    dice = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    monkeypatch.setattr(trainer, "_build_loss", lambda: DeepSupervisionWrapper(DC_and_topk_loss(dice, {}), [1.0] * 9))
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    assert torch.isfinite(torch.as_tensor(step(trainer)["loss"]))

    def weighted(student, batch, supervised_loss, progress):
        output = student(batch.image)
        return supervised_loss(output.logits, batch.target, torch.ones_like(batch.image[:, 0]))

    monkeypatch.setattr(trainer.method, "compute", weighted)
    with pytest.raises(SystemExit, match="DC_and_topk_loss"):
        step(trainer)


@pytest.mark.parametrize("kind", ["softmax", "regions"])
def test_two_processes_equal_one(kind, tmp_path):
    size = SIZES["2d"]
    logits, target = logits_at_scales(size, rows=4), full_target(kind, size, rows=4)
    weight = torch.rand(4, *size, generator=torch.Generator().manual_seed(5))
    weight[:2] *= 0.1  # the processes' weights differ
    loss = NnunetLoss(stock_loss(kind), None)(logits, target, weight)
    expected = gradients(loss, logits)
    torch.save(([scale.detach() for scale in logits], target, weight), tmp_path / "batch.pt")
    multiprocessing.set_forkserver_preload(["tests.harness"])
    mp.start_processes(_rank, args=(kind, str(tmp_path)), nprocs=2, start_method="forkserver")
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    torch.testing.assert_close((ranks[0]["loss"] + ranks[1]["loss"]) / 2, loss.detach())
    for scale in range(2):  # DDP averages gradients over processes
        of_rows = torch.cat([rank["gradients"][scale] for rank in ranks]) / 2
        torch.testing.assert_close(of_rows, expected[scale], rtol=1e-4, atol=1e-8)


def _rank(rank, kind, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    logits, target, weight = torch.load(f"{folder}/batch.pt")
    rows = slice(2 * rank, 2 * rank + 2)
    logits = [scale[rows].requires_grad_() for scale in logits]
    loss = NnunetLoss(stock_loss(kind, ddp=True), None)(logits, target[rows], weight[rows])
    torch.save({"loss": loss.detach(), "gradients": gradients(loss, logits)}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
