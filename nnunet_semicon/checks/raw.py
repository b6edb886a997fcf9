"""Checks of the raw images and labels: where they do not fit, nnU-Net stops with a traceback or leaves one out."""

import os
from collections.abc import Iterator
from os.path import isdir, join

from nnunet_semicon.checks.dataset_facts import Dataset
from nnunet_semicon.checks.findings import Finding, problem
from nnunet_semicon.data.images_un import (
    channels_of_cases,
    check_description,
    refuse_missing_suffix,
    refuse_other_channels,
)
from nnunet_semicon.errors import UserError, listing
from nnunet_semicon.files import read_object


def check_raw(dataset: Dataset) -> Iterator[Finding]:
    """Compare ``imagesTr`` with ``labelsTr``, and the names of its files with the channels in ``dataset.json``."""
    if not isdir(dataset.raw) or not dataset.labeled:  # then `check_labeled` says what is wrong
        return
    dataset_json = read_object(join(dataset.raw, "dataset.json"))
    check_description(dataset.raw, dataset_json)
    if "dataset" in dataset_json:  # it says itself which files belong together
        return
    folder, ending = join(dataset.raw, "imagesTr"), dataset_json["file_ending"]
    names = os.listdir(folder) if isdir(folder) else []
    channels_of = channels_of_cases(names, ending)
    yield from check_pairs(dataset, set(channels_of), {name.removesuffix(ending) for name in names})
    try:
        refuse_missing_suffix(folder, names, ending)
    except UserError as error:
        yield problem(str(error), "rename all of them")
    try:
        refuse_other_channels(folder, channels_of, channels_of, dataset_json)
    except UserError as error:
        yield problem(str(error), "then run this command again: there may be more")


def check_pairs(dataset: Dataset, with_image: set[str], misnamed: set[str]) -> Iterator[Finding]:
    """Look for images without a label and labels without an image.

    Args:
        dataset: its cases with a label.
        with_image: cases with a file in ``imagesTr``.
        misnamed: files without a channel suffix, which are reported elsewhere.
    """
    labeled = set(dataset.labeled)
    without_label = sorted(with_image - labeled)
    if without_label:
        yield problem(
            f"{len(without_label)} cases of imagesTr have no label in labelsTr ({listing(without_label)}): nnU-Net "
            "stops at them",
            "move unlabeled scans to imagesUn, add the labels of others",
        )
    without_image = sorted(labeled - with_image - misnamed)
    if without_image:
        yield problem(
            f"{len(without_image)} labels in labelsTr have no image in imagesTr ({listing(without_image)}): nnU-Net "
            "leaves them out",
            "add the images, or take these labels away",
        )
