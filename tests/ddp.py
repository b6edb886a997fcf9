"""Trains a real trainer in two gloo processes on the CPU.

nnU-Net's own multi-process entry uses nccl and cuda devices; here the device is set after construction, and DDP gets no
``device_ids``. Everything else is the trainer's own code.
"""

import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from tests import warm

WORLD = 2


def train(
    name: str,
    configuration: str,
    steps: int,
    batches: list[dict] | None = None,
    only_method: bool = False,
    validate: bool = False,
    memory: Sequence[float | None] = (None,) * WORLD,
) -> list[dict]:
    """Train in two processes.

    Args:
        name: of the trainer.
        configuration: of the plans.
        steps: how many.
        batches: of all ranks together, one per step, each rank gets its part, with strong views that are not drawn;
            None: each rank's own loader.
        only_method: without the supervised loss.
        validate: predict the validation cases at the end, each rank its part.
        memory: bytes of each rank's GPU, as if it had one.

    Returns:
        Per rank: ``rows`` (labeled and unlabeled images), ``settings``, ``start`` and ``state`` (tensors by name),
        ``cases`` drawn, and of every step ``scalars`` and ``gradients`` (tensors by name).
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        torch.save(batches, Path(folder) / "batches.pt")
        nnunet = {key: value for key, value in os.environ.items() if key.startswith("nnUNet_")}
        warm.start()  # a server process has imported the libraries and is forked for every rank
        args = (nnunet, name, configuration, steps, only_method, validate, memory, port, folder)
        mp.start_processes(_rank, args=args, nprocs=WORLD, start_method="forkserver")
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


def part_of(batch: dict, rank: int) -> dict:
    """The rows of one rank of a batch that a loader made; all ranks get as many."""
    n, rows = batch["n_labeled"], len(batch["image"])

    def part(start: int, end: int) -> slice:
        size = (end - start) // WORLD
        return slice(start + rank * size, start + (rank + 1) * size)

    labeled, unlabeled = part(0, n), part(n, rows)

    def of(value):
        return torch.cat([value[labeled], value[unlabeled]])

    return {
        "image": of(batch["image"]),
        "target": [target[labeled] for target in batch["target"]],
        "views": batch["views"][:, part(0, rows - n)],
        "meta": {key: codes[part(0, rows - n)] for key, codes in batch["meta"].items()},
        "case": batch["case"][labeled] + batch["case"][unlabeled],
        "n_labeled": n // WORLD,
    }


def _rank(
    rank: int,
    nnunet: dict,
    name: str,
    configuration: str,
    steps: int,
    only_method: bool,
    validate: bool,
    memory: Sequence[float | None],
    port: int,
    folder: str,
) -> None:
    # the environment is that of the test that started the server
    os.environ.update(nnunet, MASTER_ADDR="localhost", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module

    from tests.harness import draw_no_strong_views, gradients_of, make_trainer, state_of, without_supervision
    from tests.harness import validate as run_validation

    trainer_module.DDP = lambda network, device_ids: DistributedDataParallel(network)
    trainer = make_trainer(name, configuration)
    trainer.device, trainer.grad_scaler = torch.device("cpu"), None
    trainer._device_memory = lambda: memory[rank]
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    if only_method:
        without_supervision(trainer, pytest.MonkeyPatch())
    batches = torch.load(Path(folder) / "batches.pt", weights_only=False)
    if batches is not None:
        draw_no_strong_views(trainer)
    start, cases, scalars, gradients = state_of(trainer), [], [], []
    for index in range(steps):
        batch = next(trainer.dataloader_train) if batches is None else part_of(batches[index], rank)
        cases.append((batch["case"], float(batch["image"].sum())))
        trainer.train_step(batch)
        scalars.append(trainer.scalars.pop_means())
        gradients.append(gradients_of(trainer))
    start = {key: start.get(key, torch.zeros(0)) for key in state_of(trainer)}
    settings = {key: derived.value for key, derived in trainer.resolved.settings.items()}
    rows = (trainer.rows.labeled, trainer.rows.images)
    content = {
        "rows": rows,
        "settings": settings,
        "start": start,
        "state": state_of(trainer),
        "cases": cases,
        "scalars": scalars,
        "gradients": gradients,
    }
    torch.save(content, Path(folder) / f"{rank}.pt")
    if validate:
        run_validation(trainer)
    dist.destroy_process_group()
