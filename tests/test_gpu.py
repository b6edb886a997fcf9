"""Mixed precision, torch.compile and resume on a CUDA device: ``pytest -m gpu``."""

import numpy as np
import pytest
import torch

from tests.harness import CONFIGURATIONS, NAMES, make_trainer, run_until, scalars_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("compiled", ["0", "1"])
@pytest.mark.parametrize("parent", CONFIGURATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_two_epochs_and_resume(training, monkeypatch, name, parent, compiled):
    monkeypatch.setenv("nnUNet_compile", compiled)
    trainer = make_trainer(name, f"{parent}_short", device="cuda")
    assert trainer.grad_scaler is not None
    run_until(trainer, 1, monkeypatch)  # a tap that does not fire under torch.compile fails the first step
    resumed = make_trainer(name, f"{parent}_short", continue_training=True, device="cuda")
    resumed.load_checkpoint(f"{resumed.output_folder}/checkpoint_latest.pth")
    assert resumed.current_epoch == 1
    run_until(resumed, None, monkeypatch)

    rows = scalars_of(resumed)
    assert [row["epoch"] for row in rows] == [0, 1]
    for scalar in resumed.method.scalar_names:
        values = [row[scalar] for row in rows]
        assert np.isfinite(values).all()
        assert any(values)
    stored = torch.load(f"{resumed.output_folder}/checkpoint_final.pth", weights_only=False)
    assert all(t.device.type == "cpu" for t in stored["network_weights"].values())
