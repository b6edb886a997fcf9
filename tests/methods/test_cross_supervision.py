"""Cross supervision beyond the contract: who teaches whom, the second network's kind, optimizer, validation, export."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import nn

from nnunet_semicon.cli.main import main
from nnunet_semicon.configuration.architecture import unet_architecture
from nnunet_semicon.configuration.cost import network_cost
from nnunet_semicon.configuration.rules import fitting_rows
from nnunet_semicon.errors import UserError
from nnunet_semicon.losses.cross_supervision import cross_dice, cross_entropy
from nnunet_semicon.losses.schedules import sigmoid_rampup
from nnunet_semicon.methods.base import finest
from nnunet_semicon.networks.swin_unet import SwinUNet
from nnunet_semicon.training.networks import build_network
from tests import ddp
from tests.harness import (
    capture_gradients,
    configure,
    differing,
    make_trainer,
    prepare,
    run_until,
    started,
    state_of,
    step,
    validate,
    without_supervision,
)

CPS, TEACHING = "nnUNetTrainerCPS", "nnUNetTrainerCrossTeaching"
KINDS = {"swin_unet": SwinUNet, "plain_unet": PlainConvUNet, "residual_encoder_unet": ResidualEncoderUNet}
SPECIFIED = "nnUNetTrainerSwinUNet"


@pytest.mark.parametrize(("name", "loss"), [(CPS, cross_entropy), (TEACHING, cross_dice)])
def test_the_sum_is_that_of_the_formula(training, name, loss):
    trainer = started(name, "2d_short")
    trainer.current_epoch = 1
    trainer.network.eval()  # without drop path, a second forward pass gives the same
    trainer.method.eval()
    batch = next(trainer.dataloader_train)
    images, target = batch["image"], batch["target"]
    with torch.no_grad():
        own, other = trainer.network(images), trainer.method.second(images).logits
    n = batch["n_labeled"]
    expected = trainer.loss([scale[:n] for scale in own], target)
    if name == CPS:
        expected = expected + trainer.loss([scale[:n] for scale in other], target)
    else:  # one output: full resolution alone
        expected = expected + trainer.loss.loss(other[:n], target[0])
    first, second = finest(own)[n:], finest(other)[n:]
    weight = 0.1 * sigmoid_rampup(0.5)
    expected = expected + weight * (loss(first, second, False) + loss(second, first, False))
    assert loss(first, second, False) != loss(second, first, False)

    assert step(trainer, batch)["loss"] == pytest.approx(expected.item(), rel=1e-5)
    scalars = trainer.scalars.pop_means()
    assert scalars["cross"] == pytest.approx(loss(first, second, False).item(), rel=1e-5)
    assert scalars["cross_second"] == pytest.approx(loss(second, first, False).item(), rel=1e-5)


class Constant(nn.Module):
    """Certain of one class everywhere."""

    def __init__(self, like: nn.Module, certain: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.like, self.certain = like, certain

    def forward(self, images):
        logits = torch.zeros_like(finest(self.like(images)))
        logits[:, self.certain] = 20
        return logits + self.weight


def test_a_network_learns_the_class_that_the_other_one_sees(training, monkeypatch):
    """With the networks swapped, the student would learn from itself, and the other one would decide nothing."""
    pulled = []
    for certain in (1, 2):
        trainer = started(CPS, "2d_short")
        without_supervision(trainer, monkeypatch)
        trainer.method.second.network = Constant(trainer.method.second.network, certain)
        gradients = capture_gradients(trainer, monkeypatch)
        step(trainer)
        head = f"network.decoder.seg_layers.{len(trainer.plain_network.decoder.seg_layers) - 1}.bias"
        pulled.append(gradients[head])
    for certain, gradient in zip((1, 2), pulled, strict=True):
        assert (gradient < 0).tolist() == [c == certain for c in range(3)]


def test_two_networks_of_one_kind_begin_differently(training):
    trainer = started(CPS, "2d_short")
    own, second = trainer.plain_network.state_dict(), trainer.method.second.network.state_dict()
    assert any("conv" in name for name in differing(own, second))
    assert own.keys() == second.keys()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parent", ["2d", "3d_fullres"])
def test_every_kind_of_second_network(training, kind, parent):
    configure(training, "kind", f"{parent}_short", second_network=kind)
    trainer = started(TEACHING, "kind")
    assert isinstance(trainer.method.second.network, KINDS[kind])
    optimizer = trainer.optimizers[1]
    if kind == "swin_unet":
        assert isinstance(optimizer, torch.optim.AdamW)
        step(trainer)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 1e-3)  # the warm-up begins
    else:
        assert isinstance(optimizer, torch.optim.SGD)
        step(trainer)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    stock = make_trainer("nnUNetTrainerSupervisedControl", f"{parent}_short")
    stock.initialize()
    assert trainer.optimizer.param_groups[0]["lr"] == stock.optimizer.param_groups[0]["lr"] == 0.01


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A finished fold with each kind of second network, validated. Read-only."""
    copy = prepare(tiny.fresh(tmp_path_factory.mktemp("cross")))
    with pytest.MonkeyPatch.context() as monkeypatch:
        copy.use(monkeypatch)
        for kind in KINDS:
            configure(copy, f"2d_{kind}", "2d_short", second_network=kind)
            trainer = run_until(make_trainer(TEACHING, f"2d_{kind}"), None, monkeypatch)
            validate(trainer)
    return copy


def fold(trained, kind: str) -> Path:
    return trained.results / "Dataset901_Tiny" / f"{TEACHING}__nnUNetPlans__2d_{kind}" / "fold_0"


@pytest.mark.parametrize("kind", KINDS)
def test_both_networks_are_validated(trained, kind):
    summaries = [
        json.loads((folder / "validation" / "summary.json").read_text())
        for folder in (fold(trained, kind), fold(trained, kind) / "second")
    ]
    first, second = ([case["metrics"] for case in summary["metric_per_case"]] for summary in summaries)
    assert len(first) == len(second) == 2
    assert str(first) != str(second), "the same network was validated twice"


def test_both_networks_have_keys_of_their_own_in_the_summary(training, monkeypatch):
    trainer = run_until(make_trainer(CPS, "2d_short"), None, monkeypatch)
    logged = {}
    monkeypatch.setattr(trainer.logger, "log_summary", lambda key, value: logged.update({key: value}))
    logger = trainer.logger
    validate(trainer)
    keys = ["final_val/class_1_dice", "final_val/class_2_dice", "final_val/foreground_dice"]
    assert list(logged) == [*keys, *(f"second/{key}" for key in keys)]
    assert [logged[key] for key in keys] != [logged[f"second/{key}"] for key in keys]
    assert trainer.logger is logger


def test_two_processes_validate_both_networks_together(training, tmp_path):
    configure(training, "apart", "2d_short", second_network="swin_unet")
    ddp.train(TEACHING, "apart", steps=1, validate=True)
    model = tmp_path / "results" / "Dataset901_Tiny" / f"{TEACHING}__nnUNetPlans__apart" / "fold_0"
    summaries = [json.loads((f / "validation" / "summary.json").read_text()) for f in (model, model / "second")]
    cases = [[Path(case["prediction_file"]).name for case in s["metric_per_case"]] for s in summaries]
    assert cases[0] == cases[1]
    assert len(cases[0]) == ddp.WORLD, "one case for each process"
    first, second = (str([case["metrics"] for case in s["metric_per_case"]]) for s in summaries)
    assert first != second, "the same network was validated twice"


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_network_predicts_from_its_export(trained, monkeypatch, tmp_path, capsys, kind):
    trained.use(monkeypatch)
    words = ["-d", "901", "-c", f"2d_{kind}", "-tr", TEACHING, "-o", str(tmp_path / "out"), "--network", "second"]
    assert main(["export", *words]) == 0
    said = capsys.readouterr().out
    assert ("Predict with this package" in said) == (f"-tr {SPECIFIED}" in said) == (kind == "swin_unet")
    model = next((tmp_path / "out" / "Dataset901_Tiny").iterdir())
    assert model.name.startswith(SPECIFIED if kind == "swin_unet" else "nnUNetTrainer__")

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    assert isinstance(predictor.network, KINDS[kind])
    method = torch.load(fold(trained, kind) / "checkpoint_final.pth", weights_only=False)["semicon"]["method"]
    stored = {name.removeprefix("second.network."): value for name, value in method.items()}
    assert differing(predictor.list_of_parameters[0], stored) == []
    summary = (model / "fold_0" / "validation" / "summary.json").read_text()
    assert summary == (fold(trained, kind) / "second" / "validation" / "summary.json").read_text()


def test_a_trainer_without_a_second_network_has_none_to_export(trained, monkeypatch, tmp_path, capsys):
    trained.use(monkeypatch)
    run_until(make_trainer("nnUNetTrainerSupervisedControl", "2d_short"), None, monkeypatch)
    words = ["-d", "901", "-c", "2d_short", "-tr", "nnUNetTrainerSupervisedControl", "-o", str(tmp_path / "out")]
    assert main(["export", *words, "--network", "second"]) == 1
    assert "has no second network: use --network student" in capsys.readouterr().err


def test_weights_of_a_transformer_need_one(training):
    configure(training, "mixed", "2d_short", swin_weights="swin.pth", second_network="plain_unet")
    with pytest.raises(SystemExit, match="swin_weights are those of a Transformer, and second_network is plain_unet"):
        started(CPS, "mixed")
    configure(training, "missing", "2d_short", swin_weights="swin.pth")
    with pytest.raises(SystemExit, match=r"swin\.pth cannot be read"):
        started(TEACHING, "missing")


@pytest.mark.parametrize("name", [TEACHING, SPECIFIED])
def test_a_run_goes_on_without_the_weights_it_started_from(training, tmp_path, name):
    file = tmp_path / "swin.pth"
    network = build_network("swin_unet", make_trainer(name, "2d_short").configuration_manager, 1, 3, False)
    bias = network.encoder.stages[0].blocks[0].attention.bias.detach() + 1
    torch.save({"layers.0.blocks.0.attn.relative_position_bias_table": bias}, file)
    configure(training, "weights", "2d_short", swin_weights=str(file))
    trainer = started(name, "weights")
    start = trainer.method.second.network if name == TEACHING else trainer.plain_network
    assert torch.equal(start.encoder.stages[0].blocks[0].attention.bias, bias)
    step(trainer)
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    file.unlink()
    resumed = make_trainer(name, "weights", continue_training=True)
    resumed.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    resumed.on_train_start()
    assert differing(state_of(trainer), state_of(resumed)) == []


def test_rows_are_shared_where_two_networks_do_not_fit(training):
    configuration = make_trainer(CPS, "2d_short").configuration_manager.configuration
    cost = network_cost(configuration)
    needed = 2 * 12 * cost.values * 8
    assert fitting_rows(12, 12, cost, cost, None).value == fitting_rows(12, 12, cost, cost, needed).value == 12
    assert fitting_rows(12, 12, cost, None, 1).value == 12
    shared = fitting_rows(12, 12, cost, cost, 0.9 * needed)
    assert shared.value == 6
    assert "12 planned rows shared by 2 networks" in shared.reason
    assert fitting_rows(12, 13, cost, cost, needed).value == 6, "the rows that there are count, not the planned ones"
    assert fitting_rows(1, 1, cost, cost, 0).value == 1
    larger = replace(cost, values=3 * cost.values)
    assert fitting_rows(12, 12, cost, larger, needed).value == 3, "both need what one network needs with 12 rows"


@pytest.mark.parametrize(("kind", "rows"), [("swin_unet", 6), ("plain_unet", 6), ("residual_encoder_unet", 4)])
def test_the_second_network_counts_as_what_it_is(training, monkeypatch, kind, rows):
    configure(training, "kind", "2d_short", second_network=kind, batch_size=12)
    trainer = make_trainer(CPS, "kind")
    monkeypatch.setattr(trainer, "_device_memory", lambda: 1.0)
    trainer.initialize()
    assert trainer.rows.student_rows == rows


def test_a_small_gpu_halves_the_rows_and_says_so(training, monkeypatch):
    trainer = make_trainer(CPS, "2d_short")
    monkeypatch.setattr(trainer, "_device_memory", lambda: 1.0)
    trainer.initialize()
    planned = trainer.configuration_manager.batch_size
    assert trainer.rows.student_rows == planned // 2
    assert "shared by 2 networks" in trainer.resolved.settings["student_rows"].reason
    assert "shared by 2 networks" in Path(trainer.log_file).read_text()


@pytest.mark.parametrize("kind", ["plain_unet", "residual_encoder_unet"])
def test_feature_maps_are_counted_as_nnunet_does(training, kind):
    """nnU-Net's own estimate also counts heads and the blocks' skip connections: a few percent."""
    manager = make_trainer(CPS, "2d_short").configuration_manager
    network = build_network(kind, manager, 1, 3, deep_supervision=True)
    planned = {**manager.configuration, "architecture": unet_architecture(kind, manager.configuration["architecture"])}
    expected = network.compute_conv_feature_map_size(manager.patch_size)
    assert network_cost(planned).values == pytest.approx(expected, rel=0.25)


def test_plans_without_stages_are_refused():
    with pytest.raises(UserError, match=r"the network my\.Net without its n_stages, features_per_stage"):
        unet_architecture("plain_unet", {"network_class_name": "my.Net", "arch_kwargs": {}})
