"""The shifted-window U-Net: sizes from the plans, attention against a loop, stock prediction, weights of timm."""

import math
from itertools import product

import numpy as np
import pytest
import timm
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_semicon.errors import UserError
from nnunet_semicon.methods import second_network
from nnunet_semicon.methods.second_network import SecondNetworkConfig
from nnunet_semicon.networks import swin_unet
from nnunet_semicon.networks.swin_unet import (
    PatchEmbedding,
    PatchExpanding,
    PatchMerging,
    SwinBlock,
    SwinPlan,
    SwinUNet,
    plan_swin,
)
from nnunet_semicon.networks.swin_weights import load_swin_weights
from nnunet_semicon.networks.taps import FeatureTaps, decoder_tap, encoder_tap
from nnunet_semicon.training.schedule import warmup_poly
from tests.harness import configure, make_trainer, started, step

NAME = "nnUNetTrainerSwinUNet"
FLAT = plan_swin([32, 64, 128, 256], [[1, 1], [2, 2], [2, 2], [2, 2]])
DEEP = plan_swin([8, 16, 16, 16], [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2]])


def test_sizes_follow_from_the_planned_network():
    assert SwinPlan((4, 4), ((2, 2),), (96, 192), 32, 2) == FLAT
    assert SwinPlan((1, 4, 4), ((2, 2, 2),), (16, 16), 8, 2) == DEEP
    strides = [[1, 1], [2, 2], [2, 2], [2, 2], [2, 2], [2, 2]]
    assert plan_swin([32, 64, 128, 256, 512, 512], strides) == SwinPlan(
        (4, 4), ((2, 2),) * 3, (96, 192, 384, 512), 32, 2
    )
    assert plan_swin([32, 64], [[1, 1], [4, 4]]) == SwinPlan((1, 1), ((4, 4),), (32, 64), 32, 0)


@pytest.mark.parametrize(("plan", "shape"), [(FLAT, (56, 40)), (FLAT, (33, 70)), (FLAT, (8, 5)), (DEEP, (5, 30, 44))])
def test_any_size_goes_in_and_comes_out(plan, shape):
    network = SwinUNet(3, 2, plan).eval()  # no block is skipped by chance
    taps = FeatureTaps(network, [encoder_tap(), decoder_tap(), decoder_tap(1)])
    image = torch.randn(2, 3, *shape, requires_grad=True)
    logits = network(image)
    assert logits.shape == (2, 2, *shape)
    logits.square().sum().backward()
    alone = min(shape) <= 8  # a single token has nothing to look at
    assert all(p.grad is not None and (alone or p.grad.any()) for p in network.parameters())
    assert image.grad.flatten(2).any(dim=2).all()
    maps = taps.take()
    assert maps[decoder_tap()].shape == (2, plan.out_width, *shape)
    coarse = tuple(-(-n // t) for n, t in zip(shape, plan.token, strict=True))
    assert maps[decoder_tap(1)].shape == (2, plan.widths[0], *coarse)
    assert maps[encoder_tap()].shape[1] == plan.widths[-1]


def kept_bytes(network: nn.Module, image: torch.Tensor) -> int:
    """What a forward pass keeps for the backward pass, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # alive, so that no other gets its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(image)
    assert kept
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize(
    ("patch", "widths", "strides"),
    [
        ((56, 40), [32, 64, 128, 256], [[1, 1], *[[2, 2]] * 3]),
        ((256, 224), [32, 64, 128, 256, 512, 512], [[1, 1], *[[2, 2]] * 5]),
        ((40, 56, 40), [32, 64, 128, 256], [[1, 1, 1], *[[2, 2, 2]] * 3]),
        ((10, 96, 96), [32, 64, 128, 256], [[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 2, 2]]),
    ],
)
@pytest.mark.parametrize("half", [False, True])
def test_it_takes_at_most_the_memory_of_the_planned_network(patch, widths, strides, half):
    dims, stages = len(patch), len(widths)
    convolution, norm = (nn.Conv2d, nn.InstanceNorm2d) if dims == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    planned = PlainConvUNet(
        *(1, stages, widths, convolution, [[3] * dims] * stages, strides, [2] * stages, 3, [2] * (stages - 1)),
        conv_bias=True,
        norm_op=norm,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},  # all of it as nnU-Net plans it
    )
    swin = SwinUNet(1, 3, plan_swin(widths, strides))
    image = torch.randn(1, 1, *patch)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        assert kept_bytes(swin, image) < kept_bytes(planned, image)
    assert sum(p.numel() for p in swin.parameters()) < sum(p.numel() for p in planned.parameters())


def naive_attention(block: SwinBlock, x: torch.Tensor) -> torch.Tensor:
    """One image (*S, C): each token looks at those whose shifted place is in its window, one after the other."""
    attention, size = block.attention, x.shape[:-1]
    heads, width = attention.heads, x.shape[-1]
    q, k, v = attention.qkv(x).view(*size, 3, heads, width // heads).unbind(-3)
    places = list(product(*(range(n) for n in size)))

    def shifted(place):  # windows begin at multiples of the window after a shift towards the origin
        return [(p - s) // w for p, s, w in zip(place, block.shift, block.window, strict=True)]

    def bias_of(a, b):
        index = 0
        for i, j, w in zip(a, b, block.window, strict=True):
            index = index * (2 * w - 1) + i - j + w - 1
        return attention.bias[index]

    out = torch.zeros_like(x)
    for a in places:
        seen = [b for b in places if shifted(a) == shifted(b)]
        logits = torch.stack([(q[a] * k[b]).sum(-1) / math.sqrt(width // heads) + bias_of(a, b) for b in seen])
        weights = torch.softmax(logits, dim=0)  # (seen, heads)
        out[a] = torch.einsum("sh,shd->hd", weights, torch.stack([v[b] for b in seen])).reshape(-1)
    return attention.project(out)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize(("size", "window"), [((9, 5), (4, 4)), ((6, 7), (3, 3)), ((3, 5, 4), (2, 2, 2))])
def test_attention_is_that_of_a_loop(size, window, shift, monkeypatch):
    monkeypatch.setattr(swin_unet, "HEAD_DIM", 4)
    torch.manual_seed(0)
    block = SwinBlock(8, window, shift, 0.0).double()
    nn.init.normal_(block.attention.bias)
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.stack([naive_attention(block, image) for image in x])
        torch.testing.assert_close(block._attend(x), expected)


def test_tokens_keep_the_intensity():
    """Were the voxels of a token normalized, bright and dark tissue would look alike."""
    torch.manual_seed(0)
    embed = PatchEmbedding(1, 32, (4, 4))
    dark, bright = (embed(torch.full((1, 6, 8, 1), value)) for value in (0.5, 1.5))
    assert dark.shape == (1, 2, 2, 32)
    assert (bright - dark)[0, 0].abs().mean() > 0.1
    torch.testing.assert_close(dark[0, 0, 0], embed(torch.full((1, 4, 4, 1), 0.5))[0, 0, 0])  # rows 4, 5 do not matter


@pytest.mark.parametrize("plan", [FLAT, DEEP])
def test_it_learns_what_only_the_intensity_tells(plan):
    """Bright and dark boxes, other ones in each step; nothing learned is a loss of log 2 = 0.69."""
    torch.manual_seed(0)
    network = SwinUNet(1, 2, plan)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(60):
        labels = torch.randint(0, 2, (4, *[4] * len(plan.token)))
        for axis, side in enumerate(plan.token, start=1):
            labels = labels.repeat_interleave(2 * side, dim=axis)
        images = labels[:, None] + 0.5 + 0.1 * torch.randn(4, 1, *labels.shape[1:])
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3


def test_merging_takes_boxes_and_expanding_gives_them_back():
    merge, expand = PatchMerging(2, 3, (1, 2)), PatchExpanding(3, 2, (1, 2))
    merge.norm, expand.norm = nn.Identity(), nn.Identity()
    x = torch.randn(1, 3, 5, 2)
    out = merge(x)
    assert out.shape == (1, 3, 3, 3)
    torch.testing.assert_close(out[0, 1, 1], merge.reduce(x[0, 1, 2:4].flatten()))
    padded = torch.cat([x[0, 2, 4], torch.zeros(2)])
    torch.testing.assert_close(out[0, 2, 2], merge.reduce(padded))
    back = expand(out, (3, 5))
    assert back.shape == x.shape
    torch.testing.assert_close(back[0, 1, 2:4].flatten(), expand.expand(out[0, 1, 1]))


def test_the_rate_warms_up_and_falls():
    seen = [warmup_poly(done, 0.1, warmup=0.2) for done in (0, 0.1, 0.2, 0.55)]
    assert seen == pytest.approx([1e-4, 0.1 * (0.001 + 0.999 / 2), 0.1 * 0.8**0.9, 0.1 * 0.45**0.9])


def test_the_trainer_has_adamw_and_no_deep_supervision(training):
    configure(training, "swin", "2d_short", learning_rate=3e-4, weight_decay=0.01)
    trainer = started(NAME, "swin")
    group = trainer.optimizer.param_groups[0]
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert (group["weight_decay"], len(trainer.optimizers)) == (0.01, 1)
    batch = next(trainer.dataloader_train)
    assert isinstance(batch["target"], torch.Tensor)
    step(trainer, batch)
    assert group["lr"] == pytest.approx(3e-4 * 1e-3)
    step(trainer)
    assert group["lr"] == pytest.approx(3e-4 * (1 - 0.25) ** 0.9)


@pytest.mark.parametrize(("weights", "rate"), [(None, 1e-3), ("a file", 1e-4)])
def test_random_weights_have_further_to_go(weights, rate):
    filled = second_network.derive(SecondNetworkConfig(swin_weights=weights))
    assert filled.config.second_learning_rate == rate


def test_weights_of_timm_fill_the_encoder(tmp_path):
    library = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False)
    torch.save(library.state_dict(), tmp_path / "swin.pth")
    strides = [[1, 1], [2, 2], [2, 2], [2, 2], [2, 2], [2, 2]]
    network = SwinUNet(1, 2, plan_swin([32, 64, 128, 256, 384, 768], strides))
    scratch = network.state_dict()["decoder.stages.0.blocks.0.mlp.fc1.weight"].clone()
    assert load_swin_weights(network, str(tmp_path / "swin.pth")) == 4 + 4 * 2 * 13 + 3 * 3
    own, other = network.encoder.stages, library.layers
    assert torch.equal(own[2].blocks[1].mlp.fc2.weight, other[2].blocks[1].mlp.fc2.weight)
    assert torch.equal(network.state_dict()["decoder.stages.0.blocks.0.mlp.fc1.weight"], scratch)
    gray, x = torch.randn(1, 1, 224, 224), torch.randn(1, 56, 56, 96)
    with torch.no_grad():
        colors = gray.expand(1, 3, 224, 224)
        tokens = own[0].merge(gray.movedim(1, -1))
        torch.testing.assert_close(tokens, library.patch_embed(colors), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(own[1].merge(x), other[1].downsample(x))
        for index in (0, 1):  # of the second a shifted window
            torch.testing.assert_close(own[0].blocks[index].eval()(x), other[0].blocks[index].eval()(x))


@pytest.mark.parametrize("content", ["nothing", {"some.weight": torch.zeros(2)}, None])
def test_a_file_that_does_not_fit_is_one_sentence(tmp_path, content):
    path = tmp_path / "weights.pth"
    if isinstance(content, dict):
        torch.save(content, path)
    elif content:
        path.write_text(content)
    with pytest.raises(UserError, match=r"swin_weights: .*weights\.pth"):
        load_swin_weights(SwinUNet(1, 2, FLAT), str(path))


def test_weights_of_a_2d_network_do_not_fill_half_of_a_3d_one(tmp_path):
    network = SwinUNet(1, 2, plan_swin([32, 64, 128], [[1, 1, 1], [2, 2, 2], [2, 2, 2]]))
    torch.save({f"layers.0.{k}": v for k, v in network.encoder.stages[0].state_dict().items()}, tmp_path / "2d.pth")
    with pytest.raises(UserError, match=r"swin_weights: .*2d\.pth would be weights of a 2d network, and this"):
        load_swin_weights(network, str(tmp_path / "2d.pth"))


def test_the_trainer_starts_from_weights(training, tmp_path):
    configure(training, "weights", "2d_short", swin_weights=str(tmp_path / "none.pth"))
    with pytest.raises(SystemExit, match=r"swin_weights: .*none\.pth cannot be read"):
        make_trainer(NAME, "weights").initialize()
    network = SwinUNet(1, 2, plan_swin([8, 16, 16, 16], [[1, 1], [2, 2], [2, 2], [2, 2]]))
    table = network.encoder.stages[0].blocks[0].attention.bias.detach() + 1
    torch.save({"layers.0.blocks.0.attn.relative_position_bias_table": table}, tmp_path / "some.pth")
    configure(training, "weights", "2d_short", swin_weights=str(tmp_path / "some.pth"))
    trainer = make_trainer(NAME, "weights")
    trainer.initialize()
    np.testing.assert_array_equal(
        trainer.plain_network.encoder.stages[0].blocks[0].attention.bias.detach().numpy(), table.numpy()
    )
