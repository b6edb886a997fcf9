import os
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
