"""The labeled cases of a raw dataset are those that nnU-Net lists, found without its pool of processes."""

import os
from multiprocessing.pool import ThreadPool
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from nnunetv2.utilities import utils

from nnunet_semicon.data.raw_cases import raw_cases
from nnunet_semicon.workspace import image_files
from tests.tiny import read_json, write_json

CASES = ["patient10_x", "patient1", "patient2_0001", "b.c", "a-1"]


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


@pytest.fixture
def in_folders(tmp_path) -> Path:
    """Cases of two channels in ``imagesTr``, some with names that begin alike, and one in ``imagesUn``."""
    touch(tmp_path / "imagesTr", *(f"{case}_{channel:04d}.tif" for case in CASES for channel in (1, 0)))
    touch(tmp_path / "imagesTr", "patient1.json", "patient1_0000.png")  # a spacing, and another file ending
    touch(tmp_path / "labelsTr", *(f"{case}.tif" for case in CASES))
    touch(tmp_path / "imagesUn", "scan_0000.tif", "scan_0001.tif")
    write_json(tmp_path / "dataset.json", {"channel_names": {"0": "a", "1": "b"}, "file_ending": ".tif"})
    return tmp_path


@pytest.fixture
def listed(in_folders, monkeypatch) -> Path:
    """The same dataset with a list in ``dataset.json``: relative, absolute and with a variable."""
    monkeypatch.setenv("WHERE", str(in_folders / "imagesTr"))
    write_json(
        in_folders / "dataset.json",
        read_json(in_folders / "dataset.json")
        | {
            "dataset": {
                "one": {"images": ["imagesTr/b.c_0000.tif", "$WHERE/b.c_0001.tif"], "label": "labelsTr/b.c.tif"},
                "two": {"images": [str(in_folders / f"a{i}.tif") for i in range(2)], "label": "$WHERE/x.tif"},
            }
        },
    )
    return in_folders


def listing_of_nnunet(raw: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    with monkeypatch.context() as threads:
        threads.setattr(utils, "Pool", ThreadPool)  # its processes, forked beside threads, may never end
        return utils.get_filenames_of_train_images_and_targets(str(raw))


def refuse(*_) -> None:
    raise AssertionError("a process was started")


@pytest.mark.parametrize("kind", ["in_folders", "listed"])
def test_the_cases_are_those_of_nnunet_and_no_process_is_started(kind, request, monkeypatch):
    raw = request.getfixturevalue(kind)
    expected = listing_of_nnunet(raw, monkeypatch)
    assert len(expected) == {"in_folders": len(CASES), "listed": 2}[kind]

    monkeypatch.setattr(BaseProcess, "start", refuse)
    monkeypatch.setattr(os, "fork", refuse)
    found = raw_cases(raw)
    assert {c: {"images": list(map(str, f.images)), "label": str(f.label)} for c, f in found.items()} == expected
    unlabeled = [str(raw / "imagesUn" / f"scan_{channel:04d}.tif") for channel in range(2)]
    assert image_files(str(raw)) == {case: files["images"] for case, files in expected.items()} | {"scan": unlabeled}


def test_a_file_without_a_channel_is_no_case(in_folders):
    touch(in_folders / "imagesTr", "patient3.tif", "patient3_1.tif")
    assert sorted(raw_cases(in_folders)) == sorted(CASES)
