"""Worker processes: every one draws its own random numbers, and none is left behind."""

import multiprocessing
import threading
import time

import numpy as np
import pytest
import torch

from nnunet_semicon.data.batch import TwoStreamBatch
from nnunet_semicon.data.workers import start_workers, stop_workers
from nnunet_semicon.training import stream_trainer
from tests.harness import WITH_UNLABELED, Stopped, configure, make_trainer, prepare, run_until, started

MEAN_TEACHER = "nnUNetTrainerMeanTeacher"


@pytest.fixture
def two_workers(training, monkeypatch):
    """The prepared dataset, with two loader processes for training and one for validation."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    return training


class Draws:
    """A loader that says who drew which random numbers."""

    def __init__(self, stream: str):
        self.stream, self.worker, self.count = stream, -1, 0

    def __iter__(self):
        return self

    def set_thread_id(self, thread_id):
        self.worker = thread_id

    def __next__(self):
        time.sleep(0.005)  # a faster loader would let the first worker fill the queue alone
        self.count += 1
        return {(self.stream, self.worker, self.count): (float(torch.rand(1)), float(np.random.rand()))}


def draws(entropy) -> dict:
    """(stream, worker, count) -> random numbers; at least three of every worker."""
    augmenters = start_workers(Draws("train"), Draws("val"), entropy, pin_memory=False)
    wanted = {(stream, worker, 4) for stream, worker in (("train", 0), ("train", 1), ("val", 0))}
    drawn: dict = {}
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            for augmenter in augmenters:
                drawn |= next(augmenter)
            if wanted <= drawn.keys():
                return drawn
    finally:
        for augmenter in augmenters:
            stop_workers(augmenter)
    raise AssertionError("a worker never drew anything")


def test_every_worker_has_random_numbers_of_its_own(two_workers):
    drawn = list(draws([0, 0, 0]).values())
    for generator in zip(*drawn, strict=True):
        assert len(set(generator)) == len(drawn)


def test_the_seed_decides_and_rank_and_epoch_change_the_draws(two_workers):
    first, again = draws([0, 0, 0]), draws([0, 0, 0])
    shared = first.keys() & again.keys()
    assert shared
    assert all(first[key] == again[key] for key in shared)
    for entropy in ([1, 0, 0], [0, 1, 0], [0, 0, 1], None):
        other = draws(entropy)
        assert not set(first.values()) & set(other.values())


def test_seed_rank_and_epoch_reach_the_workers(training, monkeypatch):
    seen = []
    monkeypatch.setattr(stream_trainer, "start_workers", lambda train, val, entropy, pin_memory: seen.append(entropy))
    configure(training, "2d_unseeded", "2d_short", seed=None)
    for configuration, rank, epoch in (
        ("2d_short", 0, 0),
        ("2d_short", 1, 0),
        ("2d_short", 0, 5),
        ("2d_unseeded", 0, 0),
    ):
        trainer = make_trainer(MEAN_TEACHER, configuration)
        trainer.initialize()
        trainer.local_rank, trainer.current_epoch = rank, epoch
        trainer.get_dataloaders()
    assert seen == [[0, 0, 0], [0, 1, 0], [0, 0, 5], None]


@pytest.mark.parametrize("name", WITH_UNLABELED)
def test_no_two_batches_show_the_same(two_workers, name):
    trainer = started(name, "2d_short")
    try:
        batches = [TwoStreamBatch.from_dict(next(trainer.dataloader_train)) for _ in range(12)]
    finally:
        stop_workers(trainer.dataloader_train)
        stop_workers(trainer.dataloader_val)
    # two geometries of one image may be alike by chance, whole batches never
    assert len({batch.image.numpy().tobytes() for batch in batches}) == len(batches)


class Tensors(Draws):
    """A loader of tensors: a process receives them from the one that made them, while that one lives."""

    def __next__(self):
        time.sleep(0.005)
        return {"image": torch.rand(4, 1, 16, 16)}


def test_nothing_is_received_from_a_worker_that_has_ended(monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    errors = []
    monkeypatch.setattr(threading, "excepthook", errors.append)
    for _ in range(8):
        augmenters = start_workers(Tensors("train"), Tensors("val"), None, pin_memory=False)
        for _ in range(12):
            next(augmenters[0])
        for augmenter in augmenters:
            stop_workers(augmenter)
    assert errors == []


def children() -> set:
    return set(multiprocessing.active_children())


@pytest.mark.parametrize("end", ["finished", "raised"])
def test_no_worker_outlives_the_training(two_workers, monkeypatch, end):
    before = children()
    trainer = make_trainer(MEAN_TEACHER, "2d_short")
    seen = []
    begin = trainer.on_train_epoch_start

    def count():
        seen.append(len(children() - before))
        if end == "raised":
            raise Stopped
        begin()

    monkeypatch.setattr(trainer, "on_train_epoch_start", count)
    run_until(trainer, None, monkeypatch)
    assert seen[0] == 3
    assert children() == before


def test_no_worker_outlives_a_failed_start(tiny, tmp_path, monkeypatch):
    copy = prepare(tiny.fresh(tmp_path))
    copy.use(monkeypatch)
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    for file in (copy.preprocessed_dataset / "nnUNetPlans_2d").glob("patient003_*.b2nd"):
        file.write_bytes(b"not an array")
    before = children()
    # the kept exception keeps the loaders: nothing is left to garbage collection
    with pytest.raises(RuntimeError, match="background workers") as failure:
        make_trainer(MEAN_TEACHER, "2d_short").run_training()
    assert children() == before
    assert failure.traceback
