"""The sentence about the length of a run."""

import pytest

from nnunet_semicon import trainers
from nnunet_semicon.configuration.needs import Needs
from nnunet_semicon.configuration.run_length import STEPS_BEFORE_UNLABELED_PAYS, about_run_length

JOINT = Needs(views=1, student_views=1)


def test_a_run_below_the_measured_length_is_warned():
    sentence = about_run_length(JOINT, 1, STEPS_BEFORE_UNLABELED_PAYS - 1)
    assert sentence is not None
    assert sentence.startswith("warning: ")
    assert f"about {STEPS_BEFORE_UNLABELED_PAYS} steps" in sentence
    assert f"only {STEPS_BEFORE_UNLABELED_PAYS - 1}" in sentence


@pytest.mark.parametrize(("epochs", "iterations"), [(1, STEPS_BEFORE_UNLABELED_PAYS), (1000, 250)])
def test_a_run_of_that_length_is_told_so_without_a_warning(epochs, iterations):
    sentence = about_run_length(JOINT, epochs, iterations)
    assert sentence is not None
    assert "warning" not in sentence
    assert f"about {STEPS_BEFORE_UNLABELED_PAYS} steps" in sentence
    assert sentence.endswith(f"this run has {epochs * iterations}.")


def test_nothing_is_said_without_unlabeled_scans_and_in_pre_training():
    silent = {n for n in trainers.__all__ if about_run_length(getattr(trainers, n).method_class.needs, 1, 1) is None}
    without_unlabeled = {"nnUNetTrainerSupervisedLocal", *trainers.GROUPS["Controls: labeled scans alone"]}
    assert silent == {*without_unlabeled, *trainers.GROUPS["Pre-training"]}
