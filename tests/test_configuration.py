"""Defaults, overrides and derived values."""

import json
import math

import pytest
from pydantic import ValidationError

from nnunet_semicon import trainers
from nnunet_semicon.configuration.config import (
    Settings,
    check_keys,
    default_of,
    help_of,
    is_open,
    keys_of,
    open_setting,
    resolve,
    setting,
)
from nnunet_semicon.configuration.derived import Derived, Filled
from nnunet_semicon.configuration.rules import SliceExtent, partitions
from nnunet_semicon.configuration.run import RunConfig
from nnunet_semicon.errors import UserError
from nnunet_semicon.methods.meta_contrast import gamma_range, queue_size
from nnunet_semicon.methods.sp_con import SPConConfig

WHERE = "the block"


def test_a_block_overrides_what_it_names_and_nothing_else():
    config = resolve(SPConConfig, {"temperature": 0.1, "lambda": {"patient": 0.5}, "num_epochs": 3}, WHERE)
    assert config.temperature == 0.1
    assert config.lambda_ == {**SPConConfig().lambda_, "patient": 0.5}
    assert config.regularizer == SPConConfig().regularizer
    assert resolve(RunConfig, {"num_epochs": 3}, WHERE) == RunConfig(num_epochs=3)


def test_defaults_are_not_shared_between_configs():
    SPConConfig().lambda_["patient"] = 7
    assert SPConConfig().lambda_["patient"] == 0.01


@pytest.mark.parametrize(
    ("config", "block", "sentence"),
    [
        (RunConfig, {"num_epochs": "6"}, "'num_epochs' in the block is '6', expected a whole number"),
        (RunConfig, {"num_epochs": 0}, "expected at least 1"),
        (RunConfig, {"num_epochs": True}, "expected a whole number"),
        (RunConfig, {"seed": -1}, "expected at least 0"),
        (SPConConfig, {"regularizer": "soft"}, "expected one of linear, hard, none"),
        (SPConConfig, {"ema_decay": 1.5}, "expected between 0 and 1"),
        (SPConConfig, {"lambda": {"patients": 1}}, "unknown entry 'lambda.patients'.*did you mean 'patient'"),
        (SPConConfig, {"lambda": 1}, "expected an object"),
        (SPConConfig, {"lambda": {"patient": "0.1"}}, "'lambda.patient' in the block is '0.1', expected a number"),
        (SPConConfig, {"temperature": float("nan")}, "'temperature' in the block is nan, expected a number"),
        (RunConfig, {"cutout": 1}, "'cutout' in the block is 1, expected true or false"),
        (
            RunConfig,
            {"optimizer": "lion"},
            "'optimizer' in the block is 'lion', expected one of sgd, adam, adamw, radam",
        ),
        (RunConfig, {"num_epochs": None}, "'num_epochs' in the block is None, expected a whole number"),
        (SPConConfig, {"lambda": {"patient": -1}}, "'lambda.patient' in the block is -1, expected at least 0"),
    ],
)
def test_bad_values_are_refused_with_a_sentence(config, block, sentence):
    with pytest.raises(UserError, match=sentence):
        resolve(config, block, WHERE)


def test_unknown_key_names_the_nearest():
    with pytest.raises(UserError, match="'temprature' in the block; did you mean 'temperature'"):
        check_keys({"temprature": 1}, ["temperature", "seed"], WHERE)


@pytest.mark.parametrize(
    ("dataset", "shape", "spacing", "expected"),
    [
        ("ACDC", (10, 250, 220), (10.0, 1.5, 1.5), 3),
        ("Hippocampus", (36, 50, 35), (1.0, 1.0, 1.0), 3),
        ("PROMISE12", (24, 320, 320), (3.0, 0.6, 0.6), 5),
        ("MMWHS", (180, 512, 512), (0.6, 0.44, 0.44), 7),
        ("Spleen", (90, 512, 512), (5.0, 0.8, 0.8), 7),
        ("2D natural images", (1, 512, 512), (999.0, 1.0, 1.0), None),
    ],
)
def test_partitions_are_the_published_ones(dataset, shape, spacing, expected):
    assert partitions(SliceExtent(shape[0], shape[0] * spacing[0])).value == expected


def test_gamma_reproduces_the_papers_best_values():
    gamma = gamma_range(2 * 30 - 1, 0.07, "linear")
    assert gamma["gamma_start"].value == pytest.approx(2, abs=0.01)
    assert gamma["gamma_end"].value == pytest.approx(50, abs=0.05)
    bound = math.log(60) + 2 / 0.07
    assert gamma_range(59, 0.07, "hard")["gamma_end"].value < bound


def test_queue_only_where_embeddings_are_few():
    assert queue_size(60, 3).value == 0
    assert queue_size(2, 3).value == 96


def test_every_value_is_written_with_its_reason(training):
    from tests.harness import started

    trainer = started("nnUNetTrainerSPCon", "2d_short")
    with open(f"{trainer.output_folder}/semicon_config.json") as file:
        settings = json.load(file)["settings"]
    assert settings["num_epochs"] == {"value": 2, "reason": "set in the plans"}
    assert all(entry["reason"] for entry in settings.values())
    assert {
        "gamma_start",
        "gamma_end",
        "queue_size",
        "partitions",
        "labeled_per_step",
        "unlabeled_per_step",
    } <= settings.keys()


class Small(Settings):
    """A model with a rule."""

    shift: float = setting(1.0, "shift in mm")
    size: int = open_setting("side in voxels", low=1)


def test_an_open_value_is_filled_unless_it_is_set():
    rule = Derived(4, "half of the patch")
    open_one = Filled(resolve(Small, {"size": None}, WHERE)).fill(size=rule)
    assert (open_one.config.size, open_one.reasons) == (4, {"size": "half of the patch"})
    set_one = Filled(resolve(Small, {"size": 2}, WHERE)).fill(size=rule)
    assert (set_one.config.size, set_one.reasons) == (2, {})
    replaced = set_one.replace(shift=Derived(0.0, "the data has none"))
    assert (replaced.config.shift, replaced.reasons) == (0.0, {"shift": "the data has none"})


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().num_epochs = 3


@pytest.mark.parametrize("name", trainers.__all__)
def test_every_setting_says_what_it_means_and_every_default_is_legal(name):
    trainer = getattr(trainers, name)
    method = trainer.method_class
    for key, field in {**keys_of(RunConfig), **keys_of(method.Config)}.items():
        assert help_of(field), key
        if not is_open(field) and default_of(field) is not None:
            for model in (RunConfig, method.Config):
                resolve(model, {key: default_of(field)}, WHERE)
    for own in (method.defaults, method.paper, {key: Derived(value, "own") for key, value in trainer.defaults.items()}):
        check_keys(own, {*keys_of(RunConfig), *keys_of(method.Config)}, WHERE)
        for model in (RunConfig, method.Config):
            resolve(model, {key: derived.value for key, derived in own.items()}, WHERE)
        assert all(derived.reason for derived in own.values())


def test_a_key_of_a_run_is_no_key_of_a_method():
    for name in trainers.__all__:
        assert not keys_of(RunConfig).keys() & keys_of(getattr(trainers, name).method_class.Config).keys(), name
