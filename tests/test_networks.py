"""Taps, teacher, heads and queue."""

import pytest
import torch
from torch import nn

from nnunet_semicon.errors import UserError
from nnunet_semicon.networks.ema import EmaTeacher, segmentation_teacher
from nnunet_semicon.networks.exchange import exchanged
from nnunet_semicon.networks.heads import Projectors
from nnunet_semicon.networks.queue import ClassQueues, EmbeddingQueue
from nnunet_semicon.networks.taps import BOTTLENECK, FeatureTaps, channels_at


def unet() -> nn.Module:
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    return PlainConvUNet(
        1,
        3,
        [4, 8, 16],
        nn.Conv2d,
        3,
        [1, 2, 2],
        1,
        3,
        1,
        norm_op=nn.InstanceNorm2d,
        nonlin=nn.ReLU,
        deep_supervision=True,
    )


@pytest.mark.parametrize("compiled", [False, True])
def test_taps_catch_the_bottleneck_and_forget_it(compiled):
    network = unet()
    taps = FeatureTaps(network, (BOTTLENECK,))
    forward = torch.compile(network, backend="eager") if compiled else network
    for value in (0.0, 1.0):
        image = torch.full((2, 1, 16, 16), value, requires_grad=True)
        forward(image)
        features = taps.take()[BOTTLENECK]
        torch.testing.assert_close(features, network.encoder(image)[-1])
        assert features.requires_grad
        taps._caught.clear()
    with pytest.raises(RuntimeError, match="did not fire"):
        taps.take()
    assert channels_at(network, BOTTLENECK) == 16


def test_a_network_without_encoder_stages_is_refused():
    with pytest.raises(UserError, match=r"Linear has no encoder\.stages"):
        FeatureTaps(nn.Linear(1, 1), (BOTTLENECK,))


def test_teacher_has_no_gradient_no_deep_supervision_and_stays_in_evaluation():
    network = unet()
    teacher = segmentation_teacher(network)
    teacher.train()
    assert not teacher.module.training
    assert network.decoder.deep_supervision
    logits = teacher(torch.rand(1, 1, 16, 16, requires_grad=True))
    assert logits.shape == (1, 3, 16, 16)
    assert not logits.requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())


def test_teacher_averages_parameters_and_copies_buffers():
    student = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    teacher = EmaTeacher(student)
    with torch.no_grad():
        student[0].weight.add_(1)
        student[1].running_mean.fill_(5)
    old = teacher.module[0].weight.clone()
    teacher.update(student, 0.75)
    torch.testing.assert_close(teacher.module[0].weight, 0.75 * old + 0.25 * student[0].weight)
    assert torch.equal(teacher.module[1].running_mean, student[1].running_mean)


@pytest.mark.parametrize("compiled", [False, True])
def test_networks_exchange_their_values_and_keep_their_parameters(compiled):
    first, second = (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval() for _ in range(2))
    second[1].running_mean.fill_(5)
    image, parameters = torch.rand(3, 2), [id(p) for p in first.parameters()]
    forward = torch.compile(first, backend="eager") if compiled else first
    values, other = forward(image), second(image)
    assert not torch.equal(values, other)

    def fail() -> None:
        with exchanged(first, second):
            assert torch.equal(forward(image), other)
            assert torch.equal(second(image), values)
            raise ValueError("within")

    with pytest.raises(ValueError, match="within"):
        fail()
    assert torch.equal(forward(image), values)
    assert torch.equal(second(image), other)
    assert [id(p) for p in first.parameters()] == parameters


def test_teacher_of_nothing():
    nothing = Projectors((), 4, 2, 2, 8)
    teacher = EmaTeacher(nothing)
    teacher.update(nothing, 0.5)
    assert teacher(torch.rand(1, 4, 2, 2)) == {}


def test_projectors_pool_every_dimension():
    names = ("position", "patient")
    flat, deep = Projectors(names, 4, 2, 2, 8), Projectors(names, 4, 3, 2, 8)
    for embeddings in (flat(torch.ones(3, 4, 5, 6)), deep(torch.ones(3, 4, 2, 3, 1))):
        assert {k: v.shape for k, v in embeddings.items()} == {"position": (3, 8), "patient": (3, 8)}
        assert not torch.equal(embeddings["patient"], embeddings["position"])


def test_a_grid_of_one_is_the_global_average():
    (head,) = Projectors(("position",), 4, 2, 1, 8).projectors
    features = torch.randn(3, 4, 5, 6)
    torch.testing.assert_close(head(features), head.mlp(features.mean(dim=(2, 3))))


def test_queue_is_first_in_first_out():
    queue = EmbeddingQueue(4, 1)
    for label in range(6):
        queue.push(torch.tensor([[float(label)]]), torch.tensor([label]))
    assert sorted(queue.labels.tolist()) == [2, 3, 4, 5]
    assert queue.embeddings[:, 0].tolist() == queue.labels.float().tolist()
    queue.push(torch.arange(10.0)[:, None], torch.arange(10))
    assert sorted(queue.labels.tolist()) == [6, 7, 8, 9]
    restored = EmbeddingQueue(4, 1)
    restored.load_state_dict(queue.state_dict())
    restored.push(torch.tensor([[-1.0]]), torch.tensor([11]))
    queue.push(torch.tensor([[-1.0]]), torch.tensor([11]))
    assert torch.equal(restored.labels, queue.labels)


def test_each_class_has_a_queue_of_its_own():
    queues = ClassQueues(3, 2, 1)
    embeddings, labels = queues.bank
    assert labels.tolist() == [-1] * 6
    for value, label in enumerate([0, 2, 0, -1, 0, 0]):
        queues.push(torch.tensor([[float(value)]]), torch.tensor([label]))
    embeddings, labels = queues.bank
    assert labels.tolist() == [0, 0, -1, -1, 2, -1]
    assert sorted(embeddings[:2, 0].tolist()) == [4.0, 5.0]  # the frequent class keeps its last two,
    assert embeddings[4, 0] == 1.0  # the rare one what it has
    queues.push(torch.arange(10.0, 17.0)[:, None], torch.tensor([1, 0, 1, 1, -1, 0, 0]))
    embeddings, labels = queues.bank
    assert sorted(embeddings[2:4, 0].tolist()) == [12.0, 13.0]
    assert sorted(embeddings[:2, 0].tolist()) == [15.0, 16.0]
    assert embeddings[4, 0] == 1.0
    restored = ClassQueues(3, 2, 1)
    restored.load_state_dict(queues.state_dict())
    for bank in (queues, restored):
        bank.push(torch.tensor([[9.0]]), torch.tensor([2]))
    assert torch.equal(restored.bank[0], queues.bank[0])


def test_empty_queue_takes_nothing():
    queue = EmbeddingQueue(0, 3)
    queue.push(torch.ones(2, 3), torch.ones(2, dtype=torch.int64))
    assert queue.embeddings.shape == (0, 3)
    queues = ClassQueues(2, 0, 3)
    queues.push(torch.ones(2, 3), torch.ones(2, dtype=torch.int64))
    assert [t.shape for t in queues.bank] == [(0, 3), (0,)]
