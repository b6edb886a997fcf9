"""Trains a real trainer in two gloo processes on the CPU.

nnU-Net's own multi-process entry uses nccl and cuda devices; here the device is set after construction, and DDP gets no
``device_ids``. Everything else is the trainer's own code.
"""

import os
import socket
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

WORLD = 2


def train(name: str, configuration: str, steps: int) -> list[dict]:
    """Return per rank: ``start`` and ``state`` (tensors by name), ``cases`` drawn, ``memory`` (own buffers)."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, args=(name, configuration, steps, port, folder), nprocs=WORLD)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


def _rank(rank: int, name: str, configuration: str, steps: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module

    from tests.harness import make_trainer, state_of

    trainer_module.DDP = lambda network, device_ids: DistributedDataParallel(network)
    trainer = make_trainer(name, configuration)
    trainer.device, trainer.grad_scaler = torch.device("cpu"), None
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    start, cases = state_of(trainer), []
    for _ in range(steps):
        batch = next(trainer.dataloader_train)
        cases.append((batch["case"], batch["bbox"].tolist()))
        trainer.train_step(batch)
    start = {key: start.get(key, torch.zeros(0)) for key in state_of(trainer)}
    memory = {f"method.{name}" for name, _ in trainer.method.named_buffers() if not name.startswith("teacher")}
    content = {"start": start, "state": state_of(trainer), "cases": cases, "memory": memory}
    torch.save(content, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
