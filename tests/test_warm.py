"""Commands in forks of a process with loaded libraries do as cold ones, see ``tests.warm``."""

import multiprocessing
import os
import sys
from pathlib import Path

import pytest

from tests import warm
from tests.tiny import Tiny


@pytest.mark.parametrize("cold", [True, False])
def test_a_command_has_its_arguments_environment_output_and_exit_code(tmp_path, cold):
    place = Tiny(tmp_path)
    for folder in (place.raw / "Dataset007_Seven", place.preprocessed, place.results):
        folder.mkdir(parents=True)
    assert place.run("semicon", "--version", cold=cold).stdout.startswith("nnunet_semicon ")
    for number, sentence in (
        ("7", f"there is no folder {place.preprocessed / 'Dataset007_Seven'}, where nnU-Net reads the split"),
        ("8", "dataset '8' does not exist below nnUNet_raw"),
    ):
        done = place.run("semicon", "split", "-d", number, "--labeled", 1, check=False, cold=cold)
        assert done.stderr.startswith(f"semicon split: {sentence}")
        assert (done.returncode, done.stdout) == (1, "")
    assert place.run("semicon", "splt", check=False, cold=cold).returncode == 2


def what_it_sees() -> tuple:
    return "nnunetv2" in sys.modules, os.environ.get("WHO"), Path.cwd()


def spawn_and_tell(file: Path) -> None:
    with warm.forks_for_spawn(), multiprocessing.get_context("spawn").Pool(1) as pool:
        file.write_text(repr((what_it_sees(), pool.apply(what_it_sees))))


def test_what_a_fork_spawns_is_a_fork_and_sees_the_same(tmp_path, monkeypatch):
    warm.start()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WHO", "me")
    fork = warm.Fork(target=spawn_and_tell, args=(tmp_path / "told",))
    fork.start()
    fork.join()
    expected = (True, "me", tmp_path)
    assert (tmp_path / "told").read_text() == repr((expected, expected))
