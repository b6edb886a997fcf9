import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests import warm
from tests.tiny import Tiny, build

# nnU-Net reads it while it is imported: how many processes a validation inside a test starts, each for seconds
os.environ["nnUNet_def_n_proc"] = "1"
# torch reads it while it is imported: tests run side by side, and the threads of one would wait for those of another
os.environ["OMP_NUM_THREADS"] = "1"

Shared = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def shared(tmp_path_factory, worker_id) -> Shared:
    """Folders that are made once per run, by the worker that asks first: ``shared(name, make)`` returns the folder.

    ``make`` gets the folder's path. Read-only for everyone: a test that changes files takes a copy.
    """
    # pytest-xdist gives every worker a folder of its own below that of the run
    run = tmp_path_factory.getbasetemp() if worker_id == "master" else tmp_path_factory.getbasetemp().parent

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        path, made = run / f"shared_{name}", run / f"shared_{name}.made"
        with FileLock(f"{path}.lock"):
            if not made.exists():
                shutil.rmtree(path, ignore_errors=True)  # what a failed attempt of another worker left
                make(path)
                made.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def tiny(shared) -> Tiny:
    """The tiny dataset, planned and preprocessed once. Read-only: a test that changes files takes ``tiny.fresh``."""
    return Tiny(shared("tiny", build))


@pytest.fixture
def forks() -> Iterator[None]:
    """Processes that the test's own process would spawn are forks of one that has loaded nnU-Net."""
    with warm.forks_for_spawn():
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder that holds real nnU-Net datasets (Dataset004_Hippocampus), only where one is named."""
    folder = os.environ.get("NNUNET_SEMICON_TEST_DATA")
    if not folder:
        pytest.skip("NNUNET_SEMICON_TEST_DATA is unset: no folder with real datasets")
    return Path(folder)


@pytest.fixture(scope="session")
def prepared(tiny, tmp_path_factory) -> Tiny:
    """The tiny dataset with a split that has unlabeled cases and short configurations; a copy of this worker's own."""
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
