"""The page about adding a method is tried: its code, in a file of the user's own, is a trainer that works."""

import re
import textwrap
from pathlib import Path

import pytest
import torch

from nnunet_semicon import autoload
from tests.harness import configure, make_trainer, run_until, scalars_of, started, step, without_supervision

PAGE = Path(__file__).parents[1] / "docs" / "adding_a_method.md"
NAME = "nnUNetTrainerEntropyMinimization"


@pytest.fixture
def of_the_page(training, tmp_path, monkeypatch):
    """The code blocks of the page, in a folder that nnU-Net looks for trainers in."""
    blocks = re.findall(r"^ *```python\n(.*?)^ *```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "entropy_of_the_page.py").write_text("\n\n".join(map(textwrap.dedent, blocks)))
    monkeypatch.setenv(autoload.VARIABLE, str(tmp_path / "own"))
    return training


def test_its_values_are_set_derived_and_taken_from_the_paper(of_the_page):
    configure(of_the_page, "own", "2d_short", entropy_weight=0.5, preset="paper")
    trainer = make_trainer(NAME, "own")
    trainer.initialize()
    settings = trainer.resolved.settings
    assert settings["entropy_weight"] == (0.5, "set in the plans")
    assert settings["entropy_margin"] == (2, "a 16th of the shortest side of a patch")
    assert trainer.method.config.entropy_margin == 2


def test_it_learns_from_unlabeled_images(of_the_page, monkeypatch):
    losses = []
    for change in (0.0, 1.0):
        trainer = started(NAME, "2d_short")
        without_supervision(trainer, monkeypatch)
        batch = next(trainer.dataloader_train)
        batch["image"][batch["n_labeled"] :] *= 1 + change * torch.linspace(0, 1, batch["image"].shape[-1])
        torch.manual_seed(0)
        losses.append(float(step(trainer, batch)["loss"]))
    assert losses[0] != losses[1]


def test_it_trains_and_resumes(of_the_page, monkeypatch):
    trainer = run_until(make_trainer(NAME, "2d_short"), None, monkeypatch)
    rows = scalars_of(trainer)
    assert all(row["entropy"] > 0 for row in rows)
    again = make_trainer(NAME, "2d_short", continue_training=True)
    again.load_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")
    assert again.current_epoch == 2
