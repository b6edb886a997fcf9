"""Trains in a process of its own, every run from the same seed: ``python seeded_run.py RUNS``.

RUNS is a JSON list of ``[trainer, configuration, {attribute: value, ...}]``. The attributes are set on the trainer
before nnU-Net's ``run_training()``. Nothing of this package is imported here: a run of the stock trainer is stock.
"""

import json
import random
import sys

import numpy as np
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform, blur_dimension
from nnunetv2.run.run_training import get_trainer_from_args

SEED = 1234


def blur_directly(self, img, sigma, dim_to_blur):
    """batchgeneratorsv2 times two ways of blurring and takes the faster one: the result depends on the clock."""
    return blur_dimension(img, sigma, dim_to_blur, force_use_fft=False)


def train(name: str, configuration: str, attributes: dict) -> None:
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    trainer = get_trainer_from_args("901", configuration, 0, name, device=torch.device("cpu"))
    for key, value in attributes.items():
        assert hasattr(trainer, key), key
        setattr(trainer, key, value)
    trainer.run_training()


if __name__ == "__main__":
    torch.set_num_threads(1)
    GaussianBlurTransform._benchmark_wrapper = blur_directly
    for run in json.loads(sys.argv[1]):
        train(*run)
