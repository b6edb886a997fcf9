"""The exact kernel and every form made of it: many tiles, several sets, anchors of some classes only."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunet_semicon.losses import streaming
from nnunet_semicon.losses.balanced_contrast import balanced_contrast
from nnunet_semicon.losses.contrastive import supervised_contrast
from nnunet_semicon.losses.local_contrast import local_contrast
from nnunet_semicon.losses.pairs import anchors_first, pairs_by_label
from nnunet_semicon.losses.patch_contrast import patch_contrast
from nnunet_semicon.losses.self_paced import self_paced_contrast
from tests.losses import reference
from tests.losses.reference import GRADIENT_TOLERANCE, VALUE_TOLERANCE, embeddings

N_CLASSES = 4
TAU = 0.1

# classes of the pixels of each set; -1: to be ignored, 0: background
PIXELS = {
    "one set": [[0, 1, 2, 2, 0, 1, 1, 0, 2, 0, 0]],
    "singletons": [[0, 1, 2, 2, 3, 0, 0]],
    "ignored": [[0, -1, 1, 1, -1, 0, 2, 2, -1]],
    "blocks": [[0, 1, 1, 2, 2, 0], [0, 0, 0, 3, 3, 3], [1, 1, -1, -1, 0, 2]],
    "a block of background": [[0, 0, 0, 0], [0, 1, 1, 2]],
    "a block of nothing": [[-1, -1, -1], [1, 1, 0]],
    "no background": [[1, 1, 2, 3, 3, 2]],
}
EMPTY = {
    "background only": [[0, 0, 0]],
    "ignored only": [[-1, -1]],
    "all different": [[1, 2, 3]],
    "no pixels": [[]],
    "no sets": [],
}


def balanced(features, labels, background_anchors):
    vectors, pairs = anchors_first(features, labels, labels >= (0 if background_anchors else 1))
    return balanced_contrast(vectors, pairs, N_CLASSES, TAU)


def patches(features, labels, background_anchors):
    vectors, pairs = anchors_first(features, labels, labels >= (0 if background_anchors else 1))
    return patch_contrast(vectors, pairs, N_CLASSES, TAU)


FORMS = {
    "supcon": (
        lambda f, y, b: local_contrast(f, y, N_CLASSES, TAU, "supcon", background_anchors=b),
        reference.local_supcon,
    ),
    "hu_eq2": (
        lambda f, y, b: local_contrast(f, y, N_CLASSES, TAU, "hu_eq2", background_anchors=b),
        reference.local_eq2,
    ),
    "balanced": (balanced, reference.balanced),
    "patches": (patches, reference.patches),
}


@pytest.fixture(params=[4, 9, 2**20], ids=["tiles of 2 x 2", "tiles of 3 x 3", "one tile"])
def tile(request, monkeypatch):
    """Borders of tiles between any two pixels."""
    monkeypatch.setattr(streaming, "CPU_TILE", request.param)


def tensors(classes, dim=5, dtype=torch.float64):
    labels = torch.tensor(classes, dtype=torch.int64).view(len(classes), -1 if classes else 0)
    return embeddings(labels.numel(), dim, dtype=dtype).view(*labels.shape, dim), labels


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("background_anchors", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PIXELS)
def test_equals_the_loops(name, form, background_anchors):
    features, labels = tensors(PIXELS[name])
    loss, loop = FORMS[form]
    expected = reference.mean_over_sets(loop, features, PIXELS[name], TAU, 0 if background_anchors else 1)
    assert expected != 0
    for dtype in (torch.float64, torch.float32):
        value = loss(features.to(dtype), labels, background_anchors)
        assert value.dtype == dtype
        assert value.item() == pytest.approx(expected, rel=VALUE_TOLERANCE[dtype], abs=VALUE_TOLERANCE[dtype])


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("background_anchors", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PIXELS)
def test_gradient_along_a_random_direction(name, form, background_anchors):
    features, labels = tensors(PIXELS[name], dim=3)
    loss, _ = FORMS[form]
    features.requires_grad_()
    assert torch.autograd.gradcheck(lambda f: loss(f, labels, background_anchors), features, fast_mode=True)


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form, monkeypatch):
    monkeypatch.setattr(streaming, "CPU_TILE", 4)
    features, labels = tensors(PIXELS["blocks"], dim=3)
    loss, _ = FORMS[form]
    assert torch.autograd.gradcheck(lambda f: loss(f, labels, False), features.requires_grad_())


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("mode", ["hard", "linear"])
@pytest.mark.parametrize("bank", [[], [0, 2, -1, 1, 0]])
def test_self_paced_over_many_tiles(mode, bank):
    rows, gamma = [0, 0, 1, 1, -1, 2, 0], 3.0
    z = embeddings(len(rows) + len(bank), 4).requires_grad_()
    pairs = pairs_by_label(*reference.label_tensors(rows, bank))
    result = self_paced_contrast(z, pairs, 0.3, gamma, mode)
    loss, weighted, mean_weight, _ = reference.self_paced_contrast(z.detach(), rows, bank, 0.3, gamma, mode)
    assert 0 < mean_weight < 1
    assert [x.item() for x in (result.loss, result.weighted, result.mean_weight)] == pytest.approx(
        [loss, weighted, mean_weight], rel=1e-10
    )
    assert torch.autograd.gradcheck(lambda z: self_paced_contrast(z, pairs, 0.3, gamma, mode).loss, z, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", EMPTY)
def test_nothing_to_contrast_is_a_connected_zero(name, form, dtype):
    features, labels = tensors(EMPTY[name], dtype=dtype)
    features.requires_grad_()
    with torch.autograd.set_detect_anomaly(True):
        loss = FORMS[form][0](features, labels, False)
        loss.backward()  # fails where the graph is cut
    assert loss == 0
    assert (features.grad == 0).all()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_precision(form, dtype, autocast):
    features, labels = tensors(PIXELS["blocks"], dim=32, dtype=dtype)
    features[0, 1] = -features[0, 2]  # the worst pair
    exact = features.double().requires_grad_()
    expected = FORMS[form][0](exact, labels, True)
    expected.backward()
    features.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = FORMS[form][0](features, labels, True)
        loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=VALUE_TOLERANCE[dtype])
    error = (features.grad.double() - exact.grad).abs().max()
    assert error <= GRADIENT_TOLERANCE[dtype] * exact.grad.abs().max()


@pytest.mark.parametrize("form", FORMS)
def test_order_of_pixels_does_not_matter(form):
    features, labels = tensors(PIXELS["one set"])
    order = torch.randperm(labels.shape[1], generator=torch.Generator().manual_seed(1))
    loss, _ = FORMS[form]
    expected = loss(features, labels, False).item()
    assert loss(features[:, order], labels[:, order], False).item() == pytest.approx(expected, abs=1e-12)


def as_printed(features, labels):
    """L_bcl with the poster's 1/|A_y|, which counts the anchor in; of our own sums and similarities."""
    z = F.normalize(features, dim=2) / TAU**0.5
    sizes = torch.stack([(labels == y).sum(dim=1) for y in range(N_CLASSES)], dim=1).to(z.dtype)
    sums = streaming.group_logsumexp(z, labels, N_CLASSES, labels.shape[1])
    similarity, _ = streaming.positive_similarity(z, labels, labels.shape[1])
    return ((sums - sizes[:, None].log()).logsumexp(dim=2) - similarity).mean()


def test_balance_of_equal_classes_is_supcon():
    """With m pixels of each class, the printed loss is SupCon - log m, and has its gradient; ours nearly, for large m.

    Every class of the printed one counts 1/m; in ours, which leaves the anchor out, the own class counts 1/(m - 1).
    """
    m = 50
    labels = torch.arange(N_CLASSES).repeat_interleave(m)[None]
    features = embeddings(N_CLASSES * m, 6)[None].requires_grad_()
    printed, supcon = as_printed(features, labels), supervised_contrast(features[0], pairs_by_label(labels[0]), TAU)
    assert printed.item() == pytest.approx(supcon.item() - math.log(m), rel=1e-10)
    gradient, expected = (torch.autograd.grad(loss, features)[0] for loss in (printed, supcon))
    assert expected.abs().max() > 1e-4
    assert torch.allclose(gradient, expected, rtol=1e-9, atol=1e-12)
    assert balanced(features, labels, True).item() == pytest.approx(printed.item(), abs=0.02)


class Largest(TorchDispatchMode):
    """Watches the elements of the largest tensor that any operation makes, backward passes included."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))])
        return out


@pytest.mark.parametrize("form", [*FORMS, "self-paced"])
def test_no_tensor_of_all_pairs(form, monkeypatch):
    monkeypatch.setattr(streaming, "CPU_TILE", 64**2)
    n, dim = 1500, 4
    labels = torch.randint(0, N_CLASSES, (1, n), generator=torch.Generator().manual_seed(0))
    features = embeddings(n, dim, dtype=torch.float32)[None].requires_grad_()
    with Largest() as largest:
        if form == "self-paced":
            loss = self_paced_contrast(features, pairs_by_label(labels), TAU, 8.0, "linear").loss
        else:
            loss = FORMS[form][0](features, labels, False)
        loss.backward()
    assert features.grad.abs().max() > 0
    assert 64**2 <= largest.numel <= max(64**2, n * 2 * N_CLASSES)


def test_rows_of_other_pixels_are_not_computed(monkeypatch):
    """Two tenths of the pixels are anchors: a fifth of the pairs, and of those of two anchors only one order."""
    monkeypatch.setattr(streaming, "CPU_TILE", 50**2)
    labels = torch.tensor([0] * 800 + [1, 2] * 100)[None]
    features = embeddings(1000, 4, dtype=torch.float32)[None]
    seen = []
    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: seen.append(a.shape[1] * b.shape[2]) or bmm(a, b))
    local_contrast(features, labels, 3, TAU)
    assert sum(seen) == 200 * 800 + 4 * 5 // 2 * 50**2


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
def test_cuda_equals_cpu(form):
    labels = torch.randint(-1, N_CLASSES, (2, 3000), generator=torch.Generator().manual_seed(0))
    exact = embeddings(6000, 16).view(2, 3000, 16).requires_grad_()
    expected = FORMS[form][0](exact, labels, False)
    expected.backward()
    device = exact.detach().float().cuda().requires_grad_()
    with torch.autocast("cuda", dtype=torch.float16):
        loss = FORMS[form][0](device, labels.cuda(), False)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (device.grad.cpu().double() - exact.grad).abs().max() <= 1e-4 * exact.grad.abs().max()
