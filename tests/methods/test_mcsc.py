"""MCSC beyond the contract: whose labels, which pixels meet, every switch."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nnunet_semicon import trainers
from nnunet_semicon.configuration.config import keys_of
from nnunet_semicon.configuration.cost import NetworkCost
from nnunet_semicon.data.batch import pixel_classes, resized_classes
from nnunet_semicon.experiments.file import read_sweep
from nnunet_semicon.losses.balanced_contrast import balanced_contrast, shuffled_blocks
from nnunet_semicon.losses.contrastive import supervised_contrast
from nnunet_semicon.losses.local_contrast import pixel_sets
from nnunet_semicon.losses.pairs import anchors_first
from nnunet_semicon.methods import scale_term
from nnunet_semicon.methods.mcsc import MCSC
from nnunet_semicon.methods.scale_term import scale_contrast
from nnunet_semicon.networks.swin_unet import SwinUNet, plan_swin
from nnunet_semicon.networks.taps import FeatureTaps, channels_at, level_tap
from nnunet_semicon.training import optimization
from tests.harness import capture_gradients, configure, started, state_of, step, without_supervision

NAME = "nnUNetTrainerMCSC"
SWEEP = Path(__file__).parents[2] / "docs" / "sweeps" / "mcsc.yaml"


def in_evaluation(training, **values):
    """A trainer past its first epoch whose second forward pass gives the same, a batch, outputs of both networks."""
    configure(training, "mcsc", "2d_short", pixels="exact", labeled_per_step=2, **values)
    trainer = started(NAME, "mcsc")
    trainer.current_epoch = 1
    trainer.network.eval()
    trainer.method.eval()
    batch = next(trainer.dataloader_train)
    with torch.no_grad():
        outputs = trainer.student(batch["image"]), trainer.method.second(batch["image"])
    return trainer, batch, outputs


def expected_contrast(trainer, batch, outputs, cross=True, balanced=True, anchors_from=0):
    """The contrast from its parts: every pixel of both networks at every scale, with its class."""
    known = pixel_classes(batch["target"], False, None)
    n = batch["n_labeled"]
    guesses = [(o.logits[0] if isinstance(o.logits, list) else o.logits)[n:].argmax(dim=1) for o in outputs]
    own, other = (1, 0) if cross else (0, 1)
    classes = [torch.cat([known, guesses[own]]), torch.cat([known, guesses[other]])]
    total = 0.0
    for projector, level in zip(trainer.method.contrast.projectors, (0, 3), strict=True):
        maps = [output.features[level_tap(level)].movedim(1, -1).flatten(0, -2) for output in outputs]
        sizes = [output.features[level_tap(level)].shape[2:] for output in outputs]
        y = torch.cat([resized_classes(own, size).flatten() for own, size in zip(classes, sizes, strict=True)])[None]
        vectors, pairs = anchors_first(torch.cat(projector(maps))[None], y, y >= anchors_from)
        loss = balanced_contrast(vectors, pairs, 3, 0.1) if balanced else supervised_contrast(vectors, pairs, 0.1)
        total += loss.item()
    return total


@pytest.mark.parametrize(
    ("values", "how"),
    [
        ({}, {}),
        ({"cross_labels": False}, {"cross": False}),
        ({"balanced": False}, {"balanced": False}),
        ({"background_anchors": False}, {"anchors_from": 1}),
    ],
)
def test_the_contrast_is_that_of_the_formula(training, values, how):
    trainer, batch, outputs = in_evaluation(training, **values)
    with torch.no_grad():
        expected = expected_contrast(trainer, batch, outputs, **how)
        swapped = expected_contrast(trainer, batch, outputs, **{**how, "cross": not how.get("cross", True)})
    assert abs(expected - swapped) > 1e-2, "the two networks agree: the labels could come from either"
    loss = step(trainer, batch)["loss"]
    scalars = trainer.scalars.pop_means()
    assert scalars["contrast"] == pytest.approx(expected, rel=1e-4)
    weight = 0.1 * torch.exp(torch.tensor(-5 * (1 - 0.5 / 0.75) ** 2)).item()
    parts = scalars["supervised"] + scalars["supervised_second"] + weight * (scalars["cross"] + scalars["cross_second"])
    assert loss == pytest.approx(parts + 2 * 0.001 * expected, rel=1e-4)


def test_an_overflow_of_one_network_reaches_no_other_optimizer(training, monkeypatch):
    """With loss scaling, the step of the optimizer that met NaN is left out; clipping must not spread it first."""
    configure(training, "mcsc", "2d_short", contrast_start=0.0)
    trainer = started(NAME, "mcsc")
    network, projectors = trainer.method.second.network, trainer.method.contrast
    broken = next(network.parameters())
    average = optimization.average_gradients

    def overflow(parameters):
        average(parameters)
        broken.grad[...] = torch.nan

    monkeypatch.setattr(optimization, "average_gradients", overflow)
    monkeypatch.setattr(trainer, "grad_scaler", torch.amp.GradScaler("cpu"))
    before = {name: value.clone() for name, value in trainer.method.state_dict().items()}
    step(trainer)
    after = trainer.method.state_dict()
    assert all(torch.isfinite(value).all() for value in after.values())
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("second."))
    assert any(not torch.equal(p, before[f"contrast.{name}"]) for name, p in projectors.named_parameters())


def test_in_the_beginning_only_labeled_rows_are_contrasted(training, monkeypatch):
    seen = []
    for start in (0.0, 1.0):
        configure(training, "mcsc", "2d_short", contrast_start=start)
        trainer = started(NAME, "mcsc")
        term = trainer.method.contrast
        forward = term.forward
        monkeypatch.setattr(term, "forward", lambda f, c, forward=forward: seen.append(len(c[0])) or forward(f, c))
        batch = next(trainer.dataloader_train)
        step(trainer, batch)
    assert seen == [len(batch["image"]), batch["n_labeled"]]


@pytest.mark.parametrize("shape", [(6, 9), (4, 6, 5)])
@pytest.mark.parametrize("size", [3, 4, 19])
def test_every_pixel_keeps_its_own_label(shape, size):
    """Unique values per position, in the map and as its label: the authors' code mixes them up."""
    maps = torch.arange(4 * torch.tensor(shape).prod()).view(4, *shape)
    vectors, labels = shuffled_blocks(maps[:, None].double(), maps, size)
    known = labels >= 0
    assert torch.equal(vectors[..., 0][known].long(), labels[known])
    assert sorted(labels[known].tolist()) == maps.flatten().tolist()
    assert labels.shape[1] == 4 * size ** len(shape)


def test_blocks_of_a_set_come_from_every_map_and_any_place():
    image = torch.arange(3)[:, None, None].expand(3, 8, 8)
    place = (torch.arange(8)[:, None] // 2 * 4 + torch.arange(8)[None] // 2).expand(3, 8, 8)
    torch.manual_seed(0)
    vectors, labels = shuffled_blocks(torch.stack([image, place], dim=1).double(), image, 2)
    assert vectors.shape == (16, 12, 2)
    assert (labels == torch.arange(3).repeat_interleave(4)).all()
    places = vectors[..., 1].view(16, 3, 4)
    assert (places == places[..., :1]).all(), "a block was torn apart"
    assert (places[:, 0] != places[:, 1]).any(), "blocks of all maps come from one place"
    for own in places[..., 0].T:
        assert sorted(own.tolist()) == list(range(16))


@pytest.mark.parametrize("values", [{}, {"balanced": False}, {"background_anchors": False}])
def test_a_few_sets_at_a_time_give_the_loss_of_all(training, monkeypatch, values):
    """One of the sets has a single class, one nothing but background, one nothing that is known."""
    configure(training, "blocks", "2d_short", pixels="block", block_size=2, scales={"1/8": 0.0}, **values)
    term = started(NAME, "blocks").method.contrast
    width = [layer[1].in_features for layer in term.projectors[0].first]
    maps = [torch.randn(2, channels, 8, 8, requires_grad=True) for channels in width]
    classes = torch.randint(0, 3, (2, 8, 8))
    monkeypatch.setattr("nnunet_semicon.methods.scale_term.shuffled_blocks", in_order)
    for column, value in enumerate((1, 0, -1)):
        classes[:, :2, 2 * column : 2 * column + 2] = value
    features = [{level_tap(0): own} for own in maps]
    found = []
    for at_once in (2**30, 3 * 16 * 128):  # all 16 sets of 16 pixels in 128 dimensions, and 3 of them
        monkeypatch.setattr(scale_term, "VALUES_AT_ONCE", {False: at_once})
        kept = KeptForBackward()
        with kept:
            loss = term(features, [classes, classes])
        gradients = torch.autograd.grad(loss, [*maps, *term.projectors.parameters()])
        found.append((loss, gradients, kept.values))
    (loss, gradients, values_of_all), (in_parts, of_parts, values_of_parts) = found
    assert loss > 0.1
    torch.testing.assert_close(in_parts, loss)
    for own, of_all in zip(of_parts, gradients, strict=True):
        torch.testing.assert_close(own, of_all)
    assert values_of_parts < 16 * 16 * 128 < values_of_all, "embeddings of all pixels are kept"


def in_order(maps, labels, size):
    """Blocks that are not shuffled."""
    return pixel_sets(maps, labels, "block", size)


class KeptForBackward(torch.autograd.graph.saved_tensors_hooks):
    """Counts the values that are kept for the backward pass, each tensor once."""

    def __init__(self):
        self.kept = {}
        super().__init__(self.keep, lambda tensor: tensor)

    def keep(self, tensor):
        storage = tensor.untyped_storage()
        self.kept[storage.data_ptr()] = (storage.nbytes() // tensor.element_size(), tensor)
        return tensor

    @property
    def values(self):
        return sum(size for size, _ in self.kept.values())


def test_side_of_a_block_follows_from_the_cost():
    levels = {"1": 0, "1/8": 3}
    shapes = ((64, 64), (32, 32), (16, 16), (8, 8))

    def sides(flops, shapes=shapes):
        rules = scale_contrast(4, levels, 128, NetworkCost(shapes, flops), 19)
        return [rules[scale].value for scale in levels]

    coarse, fine = (6 * (8 * side**2) ** 2 * 128 / 8 for side in (8, 64))  # all pixels, for one row of one network
    of_blocks = 6 * 8**2 * 64**2 * 10**2 * 128 / 8  # of 10 x 10 pixels at full resolution
    assert sides(fine + coarse) == [0, 0]
    assert sides(fine + 0.99 * coarse) == [19, 0], "the scales share what the networks cost"
    assert sides(of_blocks + coarse) == [10, 0]
    assert sides(of_blocks) == [9, 0]
    assert sides(coarse) == [1, 0]
    assert sides(0.99 * coarse) == [1, 7]
    assert sides(1.0) == [1, 1]
    assert sides(0.0) == [19, 19]
    assert sides(fine, shapes[:2])[1] == 0, "a scale without a map is taken at the nearest one"


@pytest.mark.parametrize("scales", [{"1": 0.0}, {"1/8": 0.0}, {"1/4": 1.0}, {"1": 0.0, "1/4": 2.0, "1/8": 0.0}])
def test_any_subset_of_scales(training, scales):
    configure(training, "scales", "2d_short", scales=scales)
    trainer = started(NAME, "scales")
    used = {scale for scale, weight in {"1": 1.0, "1/4": 0.0, "1/8": 1.0, **scales}.items() if weight}
    assert set(trainer.method.contrast.weights) == used
    assert len(trainer.method.contrast.projectors) == len(used)
    step(trainer)
    assert trainer.scalars.pop_means()["contrast"] > 0


def test_without_contrast_it_is_cross_teaching(training):
    states = []
    for name, values in ((NAME, {"lambda_contrast": 0.0}), ("nnUNetTrainerCrossTeaching", {"rampup": 0.75})):
        configure(training, "plain", "2d_short", **values)
        trainer = started(name, "plain")
        trainer.current_epoch = 1
        step(trainer)
        assert "contrast" not in trainer.scalars.pop_means()
        states.append(state_of(trainer))
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_no_scale_is_refused(training):
    configure(training, "none", "2d_short", scales={"1": 0.0, "1/8": 0.0})
    with pytest.raises(SystemExit, match=r"no scale has a weight above 0: set one, e\.g\. scales\.1=1"):
        started(NAME, "none")


def test_the_last_layer_of_a_projector_learns_from_both_networks(training, monkeypatch):
    trainer = started(NAME, "2d_short")
    without_supervision(trainer, monkeypatch)
    trainer.current_epoch = 1
    gradients = capture_gradients(trainer, monkeypatch)
    step(trainer)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]
    assert len(rates) == 3
    for index in range(2):
        for layer in ("first.0.1", "first.1.1", "shared"):
            assert gradients[f"method.contrast.projectors.{index}.{layer}.weight"].abs().sum() > 0
    assert torch.optim.AdamW in {type(optimizer) for optimizer in trainer.optimizers}


def test_taps_by_level_meet_in_both_networks():
    plan = plan_swin([32, 64, 128, 256, 512], [[1, 1], [2, 2], [2, 2], [2, 2], [2, 2]])
    network = SwinUNet(1, 2, plan).eval()
    taps = FeatureTaps(network, [level_tap(level) for level in (0, 2, 3)])
    network(torch.zeros(1, 1, 64, 48))
    caught = taps.take()
    maps = [caught[name] for name in taps.names]
    assert [tuple(own.shape[2:]) for own in maps] == [(64, 48), (16, 12), (8, 6)]
    assert [own.shape[1] for own in maps] == [channels_at(network, name) for name in taps.names]


def test_the_sweep_of_the_ablations_names_trainers_and_keys_that_exist():
    stages = read_sweep(SWEEP).stages
    assert len([name for name in stages if name.startswith("a1_")]) == 5  # rows of the poster's table
    assert len([name for name in stages if name.startswith("a2_")]) == 4  # two more of its six are rows of A1
    for stage in stages.values():
        known = keys_of(getattr(trainers, stage.trainer).method_class.Config)
        assert {key.split(".")[0] for key in stage.set} <= set(known), stage.name


def test_regions_are_contrasted_by_their_combination():
    logits = torch.tensor([[-1.0, 1.0, 1.0, -1.0], [-1.0, -1.0, 1.0, 1.0]])[None, ..., None]  # two regions, four pixels
    predicted = MCSC._predicted(SimpleNamespace(has_regions=True), logits)
    assert predicted.flatten().tolist() == [0, 1, 3, 2]
