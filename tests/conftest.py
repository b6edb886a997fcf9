import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny import Tiny, build


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    """The tiny dataset, planned and preprocessed once. Read-only: a test that changes files takes ``tiny.fresh``."""
    return build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder that holds real nnU-Net datasets (Dataset004_Hippocampus), only where one is named."""
    folder = os.environ.get("NNUNET_SEMICON_TEST_DATA")
    if not folder:
        pytest.skip("NNUNET_SEMICON_TEST_DATA is unset: no folder with real datasets")
    return Path(folder)


@pytest.fixture(scope="session")
def prepared(tiny, tmp_path_factory) -> Tiny:
    """The tiny dataset with a split that has unlabeled cases and short configurations. Read-only."""
    from tests.harness import prepare

    return prepare(tiny.fresh(tmp_path_factory.mktemp("prepared")))


@pytest.fixture
def training(prepared, monkeypatch, tmp_path) -> Iterator[Tiny]:
    """``prepared`` in this process's environment, with results and added configurations of this test's own."""
    prepared.use(monkeypatch)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    plans = prepared.plans_file.read_bytes()
    yield prepared
    prepared.plans_file.write_bytes(plans)
