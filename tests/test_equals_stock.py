"""Our training loop adds nothing to nnU-Net's but what a method asks for: the control gives its bits."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests import seeded_run
from tests.harness import CONFIGURATIONS, configure, differing, prepare
from tests.tiny import Tiny

LENGTH = {"num_epochs": 2, "num_iterations_per_epoch": 10, "num_val_iterations_per_epoch": 1}  # 20 steps
STOCK, CONTROL, MEAN_TEACHER = "nnUNetTrainer", "nnUNetTrainerSupervisedControl", "nnUNetTrainerMeanTeacher"


def in_a_process(tiny: Tiny, runs: list, **extra_env: str) -> None:
    done = subprocess.run(
        [sys.executable, seeded_run.__file__, json.dumps(runs)],
        env=tiny.env | extra_env,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, f"{runs}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def weights(tiny, shared):
    """(trainer, configuration) -> weights after 20 steps."""
    # neither a seed nor labeled_per_step: the script seeds, and the control takes the planned batch
    stock = [(STOCK, parent, LENGTH) for parent in CONFIGURATIONS]
    ours = [(CONTROL, f"{parent}_plain", {}) for parent in CONFIGURATIONS]
    # Mean Teacher is compared with itself: another number of rows and views draws other random numbers than the
    # control does, so these two would differ even with the term switched off.
    consistency = {"off": 0.0, "off_again": 0.0, "on": 1.0}
    ours += [(MEAN_TEACHER, f"2d_{name}", {}) for name in consistency]

    def train(root: Path) -> None:
        copy = prepare(tiny.fresh(root))
        for parent in CONFIGURATIONS:
            configure(copy, f"{parent}_plain", parent, **LENGTH)
        for name, weight in consistency.items():
            configure(copy, f"2d_{name}", "2d", **LENGTH, consistency_weight=weight)
        with ThreadPoolExecutor() as pool:
            processes = [
                pool.submit(in_a_process, copy, stock, NNUNET_SEMICON_AUTOLOAD="0"),
                pool.submit(in_a_process, copy, ours),
            ]
            for process in processes:
                process.result()

    copy = Tiny.in_folder(shared("equals_stock", train))
    return {(name, configuration): trained(copy, name, configuration) for name, configuration, _ in stock + ours}


def trained(tiny: Tiny, name: str, configuration: str) -> dict[str, torch.Tensor]:
    folder = Path(tiny.results) / tiny.name / f"{name}__nnUNetPlans__{configuration}" / "fold_0"
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["trainer_name"] == name
    assert len(checkpoint["logging"]["train_losses"]) == LENGTH["num_epochs"]
    return checkpoint["network_weights"]


@pytest.mark.parametrize("parent", CONFIGURATIONS)
def test_the_control_is_the_stock_trainer_bit_for_bit(weights, parent):
    assert differing(weights[STOCK, parent], weights[CONTROL, f"{parent}_plain"]) == []


def test_an_unlabeled_term_changes_the_weights(weights):
    off, again, on = (weights[MEAN_TEACHER, f"2d_{name}"] for name in ("off", "off_again", "on"))
    assert differing(off, again) == [], "the run itself is not reproducible"
    assert differing(off, on)
