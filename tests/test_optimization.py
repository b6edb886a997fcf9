"""Optimizer, schedule and supervised loss are settings of every trainer; the defaults are nnU-Net's own."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nnunet_semicon.configuration.run import RunConfig
from nnunet_semicon.training.optimization import make_optimizer, make_schedule
from nnunet_semicon.training.schedule import warmup_cosine, warmup_poly
from tests.harness import NAMES, configure, differing, make_trainer, run_until, started, state_of, step

CONTROL, MEAN_TEACHER = "nnUNetTrainerSupervisedControl", "nnUNetTrainerMeanTeacher"
PRETRAINING, SWIN = "nnUNetTrainerSPConPretrain", "nnUNetTrainerSwinUNet"


def run_config(**values) -> RunConfig:
    return RunConfig(**{"learning_rate": 0.01, "num_epochs": 10, **values})


class Network(torch.nn.Module):
    """An encoder and a decoder with one weight each."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Linear(1, 1, bias=False)
        self.decoder = torch.nn.Linear(1, 1, bias=False)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("radam", torch.optim.RAdam)],
)
def test_every_optimizer_gets_rate_and_decay(name, kind):
    network = Network()
    optimizer = make_optimizer(network, network.parameters(), run_config(optimizer=name, weight_decay=0.5))
    assert type(optimizer) is kind
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups] == [(0.01, 0.5, 2)]
    if name == "sgd":
        assert (optimizer.param_groups[0]["momentum"], optimizer.param_groups[0]["nesterov"]) == (0.99, True)


def test_the_encoder_keeps_its_factor_through_the_schedule():
    network, run = Network(), run_config(encoder_lr_factor=0.1, lr_schedule="cosine", warmup=0.2)
    optimizer = make_optimizer(network, network.parameters(), run)
    decoder, encoder = optimizer.param_groups
    assert encoder["params"] == list(network.encoder.parameters())
    assert decoder["params"] == list(network.decoder.parameters())
    schedule = make_schedule([optimizer], run)
    for epoch in (0, 1.5, 2.0, 7.25):
        schedule.step(epoch)
        assert decoder["lr"] == pytest.approx(warmup_cosine(epoch / 10, 0.01, 0.2))
        assert encoder["lr"] == pytest.approx(warmup_cosine(epoch / 10, 0.001, 0.2))


def test_only_a_warm_up_or_a_cosine_changes_rates_within_an_epoch():
    def rate(**values) -> float:
        network, run = Network(), run_config(**values)
        optimizer = make_optimizer(network, network.parameters(), run)
        schedule = make_schedule([optimizer], run)
        assert schedule.changes_within_epochs is bool(values)
        schedule.step(3.5)
        return optimizer.param_groups[0]["lr"]

    assert rate() == 0.01 * (1 - 3 / 10) ** 0.9  # nnU-Net's own, bit by bit
    assert rate(warmup=0.5) == warmup_poly(0.35, 0.01, 0.5)
    assert rate(lr_schedule="cosine") == warmup_cosine(0.35, 0.01, 0.0)


@pytest.mark.parametrize("name", [CONTROL, PRETRAINING])
def test_the_papers_fine_tuning_is_a_setting_and_resumes(training, monkeypatch, name):
    values = {"optimizer": "radam", "learning_rate": 3e-5, "lr_schedule": "cosine", "warmup": 0.1}
    configure(training, "tuned", "2d_short", num_epochs=3, save_every=2, encoder_lr_factor=0.5, **values)
    whole = run_until(make_trainer(name, "tuned"), None, monkeypatch)
    assert isinstance(whole.optimizer, torch.optim.RAdam)
    expected = state_of(whole)
    run_until(make_trainer(name, "tuned"), 2, monkeypatch)
    resumed = make_trainer(name, "tuned", continue_training=True)
    resumed.load_checkpoint(f"{resumed.output_folder}/checkpoint_latest.pth")
    run_until(resumed, None, monkeypatch)
    assert differing(expected, state_of(resumed)) == []
    rates = [group["lr"] for group in resumed.optimizer.param_groups]
    assert rates[-1] < 3e-5


@pytest.mark.parametrize("kind", ["softmax", "regions"])
def test_cross_entropy_alone(training, monkeypatch, kind):
    configure(training, "ce", "2d_short", supervised_loss="ce")
    trainer = started(CONTROL, "ce")
    if kind == "regions":
        monkeypatch.setattr(type(trainer.label_manager), "has_regions", True)
    loss = trainer._build_loss()
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, 3, size, size, generator=generator) for size in (32, 16, 8)]
    if kind == "regions":
        target = [(torch.rand(x.shape, generator=generator) < 0.5).float() for x in logits]
        per_scale = [F.binary_cross_entropy_with_logits(x, y) for x, y in zip(logits, target, strict=True)]
    else:
        target = [torch.randint(0, 3, (2, 1, *x.shape[2:]), generator=generator).float() for x in logits]
        per_scale = [F.cross_entropy(x, y[:, 0].long()) for x, y in zip(logits, target, strict=True)]
    weights = np.array([1 / 2**i for i in range(len(logits))])
    weights[-1] = 0
    weights /= weights.sum()
    expected = sum(w * float(value) for w, value in zip(weights, per_scale, strict=True))
    assert float(loss(logits, target)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_papers_values_train(training, name):
    configure(training, "paper", "2d_short", preset="paper")
    trainer = started(name, "paper")
    trainer.current_epoch = 1  # past every warm-up
    assert all(np.isfinite(step(trainer)["loss"]) for _ in range(2))


def test_a_network_without_an_encoder_has_no_rate_for_it(training):
    network = torch.nn.Linear(1, 1)
    from nnunet_semicon.errors import UserError

    with pytest.raises(UserError, match=r"encoder_lr_factor is 0\.5, but Linear has no encoder"):
        make_optimizer(network, network.parameters(), run_config(encoder_lr_factor=0.5))


def test_keys_of_other_trainers_are_named_once_in_the_log(training):
    configure(training, "shared", "2d_short", temperature=0.2, window=0.25, ema_decay=0.9)
    trainer = make_trainer(MEAN_TEACHER, "shared")
    trainer.initialize()
    with open(trainer.log_file) as file:
        lines = [line for line in file if "not used by" in line]
    assert [line.strip() for line in lines] == [f"not used by {MEAN_TEACHER}: temperature, window"]
    assert trainer.method.config.ema_decay == 0.9
