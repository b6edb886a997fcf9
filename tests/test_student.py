"""What a method calls the student for: features that are perturbed, and logits without a gradient."""

import pytest
import torch
from torch import nn

from nnunet_semicon.errors import UserError
from nnunet_semicon.networks.feature_dropout import FeatureDropout
from nnunet_semicon.networks.taps import BOTTLENECK, FeatureTaps
from nnunet_semicon.training.student import NetworkStudent
from tests.test_networks import unet


def student_of(network: nn.Module, compiled: bool = False, taps: tuple[str, ...] = ()) -> NetworkStudent:
    dropout = FeatureDropout(network)
    forward = torch.compile(network, backend="eager") if compiled else network
    return NetworkStudent(forward, network, FeatureTaps(network, taps), encoder_only=False, dropout=dropout)


@pytest.mark.parametrize("compiled", [False, True])
def test_only_the_named_rows_are_perturbed(compiled):
    torch.manual_seed(0)
    network = unet()
    student = student_of(network, compiled)
    images = torch.rand(3, 1, 16, 16)
    plain = student(images).logits
    for rows in ([True, False, True], [False, False, True], None, [True, True, True]):
        logits = student(images, None if rows is None else torch.tensor(rows)).logits
        for scale, expected in zip(logits, plain, strict=True):
            equal = [torch.equal(row, own) for row, own in zip(scale, expected, strict=True)]
            assert equal == [not row for row in rows or [False] * 3]


@pytest.mark.parametrize("compiled", [False, True])
def test_nothing_is_perturbed_behind_the_students_back(compiled):
    network = unet()
    student = student_of(network, compiled)
    images = torch.rand(3, 1, 16, 16)
    student(images, torch.tensor([True, True, True]))
    plain = student.no_grad(images[:2])
    with torch.no_grad():  # as nnU-Net validates, with another number of rows
        assert torch.equal(student.network(images[:2])[0], plain)


def test_half_of_the_channels_are_dropped_and_the_others_doubled():
    network = unet()
    dropout = FeatureDropout(network)
    seen = []
    network.decoder.register_forward_pre_hook(lambda _, args: seen.append([own.detach() for own in args[0]]))
    images = torch.rand(64, 1, 16, 16)
    network(images)
    dropout.draw(torch.ones(64, dtype=torch.bool), images)
    network(images)
    for plain, perturbed in zip(*seen, strict=True):
        factors = (perturbed.flatten(2).sum(2) / plain.flatten(2).sum(2).clamp_min(1e-9)).round()
        factors = factors[plain.flatten(2).sum(2) > 0]
        assert set(factors.tolist()) == {0.0, 2.0}
        assert 0.35 < (factors == 0).float().mean() < 0.65


def test_logits_without_a_gradient_are_those_of_evaluation_mode():
    network = unet()
    network.encoder.add_module("only_in_training", nn.Dropout(0.9))
    network.encoder.register_forward_hook(lambda module, _, maps: [module.only_in_training(own) for own in maps])
    student = student_of(network, taps=(BOTTLENECK,))
    images = torch.rand(2, 1, 16, 16, requires_grad=True)
    logits = student.no_grad(images)
    assert logits.shape == (2, 3, 16, 16)
    assert not logits.requires_grad
    assert network.training
    assert not torch.equal(student(images).logits[0], logits)  # the features of the first pass are forgotten
    network.eval()
    torch.testing.assert_close(student(images).logits[0], logits)


def test_a_method_that_did_not_ask_for_it_cannot_perturb():
    network = unet()
    student = NetworkStudent(network, network, FeatureTaps(network, ()), encoder_only=False, dropout=None)
    with pytest.raises(ValueError, match=r"Needs\(perturb=True\)"):
        student(torch.rand(1, 1, 16, 16), torch.tensor([True]))


def test_a_network_without_an_encoder_cannot_be_perturbed():
    with pytest.raises(UserError, match="Linear has no encoder"):
        FeatureDropout(nn.Linear(1, 1))
