"""Time and memory of contrast over N vectors: ours, a matrix of all pairs, and pytorch-metric-learning.

Forward and backward. One process times all of them in turn on the same vectors; memory is that of a process per loss,
beyond what it holds before its first step. The matrix and pytorch-metric-learning stop at 16 384 vectors.
``scripts/make_results.py`` brings the table and the figure into docs/performance.md.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from provenance import provenance, write_json
from torch import Tensor
from tqdm import tqdm

from nnunet_semicon.losses.balanced_contrast import balanced_contrast
from nnunet_semicon.losses.contrastive import supervised_contrast
from nnunet_semicon.losses.local_contrast import local_contrast
from nnunet_semicon.losses.pairs import pairs_by_label
from nnunet_semicon.losses.self_paced import self_paced_contrast

Loss = Callable[[Tensor, Tensor], Tensor]

SIZES = (1024, 4096, 16384, 65536)
DIMENSIONS = (32, 64, 128)
LARGEST_MATRIX = 16384
FORMS_SIZE, FORMS_DIMENSION = 16384, 64
CHECKED_SIZE = 4096  # the float64 matrix of the check takes 128 MiB
N_CLASSES = 4
BACKGROUND = 0.8  # part of the vectors that has class 0, as in a slice of ACDC or more
TAU = 0.1
SECONDS = 3.0  # a loss is repeated until it has run so long, at least 2 and at most 10 times
MIB = 2**20


def streamed(z: Tensor, labels: Tensor) -> Tensor:
    """Ours."""
    return supervised_contrast(z, pairs_by_label(labels), TAU)


def matrix(z: Tensor, labels: Tensor) -> Tensor:
    """The textbook form: a matrix of all pairs."""
    z = torch.nn.functional.normalize(z)
    similarity = z @ z.T / TAU
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (labels[:, None] == labels) & ~itself
    log_probability = similarity - similarity.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    return -(log_probability * positive).sum(1).div(positive.sum(1)).mean()


def metric_learning(z: Tensor, labels: Tensor) -> Tensor:
    """``SupConLoss`` of pytorch-metric-learning."""
    from pytorch_metric_learning.losses import SupConLoss

    loss: Tensor = SupConLoss(temperature=TAU)(z, labels)
    return loss


LOSSES: dict[str, Loss] = {"streamed": streamed, "matrix": matrix, "pytorch-metric-learning": metric_learning}
FORMS: dict[str, Loss] = {
    "SupCon": streamed,
    "SupCon, no background anchors": lambda z, y: local_contrast(z[None], y[None], N_CLASSES, TAU),
    "Hu's eq. 2, no background anchors": lambda z, y: local_contrast(z[None], y[None], N_CLASSES, TAU, "hu_eq2"),
    "class-balanced": lambda z, y: balanced_contrast(z, pairs_by_label(y), N_CLASSES, TAU),
    "self-paced, linear": lambda z, y: self_paced_contrast(z, pairs_by_label(y), TAU, 10.0, "linear").loss,
}


def vectors(n: int, dimension: int, device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return (N, D) random vectors and (N,) classes, most of them background."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, dimension, generator=generator, dtype=dtype)
    foreground = torch.randint(1, N_CLASSES, (n,), generator=generator)
    labels = foreground * (torch.rand(n, generator=generator) >= BACKGROUND)
    return z.to(device).requires_grad_(), labels.to(device)


def step(loss: Loss, z: Tensor, labels: Tensor) -> float:
    """Return the seconds of one forward and backward pass."""
    z.grad = None
    _wait(z)
    start = time.perf_counter()
    loss(z, labels).backward()
    _wait(z)
    return time.perf_counter() - start


def _wait(z: Tensor) -> None:
    if z.is_cuda:
        torch.cuda.synchronize()


def times(losses: dict[str, Loss], n: int, dimension: int, device: str) -> dict[str, float]:
    """Return the median seconds of each loss, timed in turn."""
    z, labels = vectors(n, dimension, device)
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    for loss in losses.values():
        step(loss, *vectors(64, dimension, device))  # libraries load their kernels
    for done in range(10):
        for name, loss in losses.items():
            if done < 2 or sum(seconds[name]) < SECONDS:
                seconds[name].append(step(loss, z, labels))
    return {name: median(values) for name, values in seconds.items()}


def peak_mib(name: str, n: int, dimension: int, device: str) -> float:
    """Return the MiB that one step takes beyond its vectors, from a process of its own."""
    words = [sys.executable, __file__, "--memory", name, str(n), str(dimension), "--device", device]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return float(done.stdout)


def print_memory(name: str, n: int, dimension: int, device: str) -> None:
    """Print what :func:`peak_mib` returns."""
    loss = (LOSSES | FORMS)[name]
    step(loss, *vectors(64, dimension, device))  # libraries load their kernels
    z, labels = vectors(n, dimension, device)
    z.grad = torch.zeros_like(z)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss(z, labels).backward()
        print((torch.cuda.max_memory_allocated() - before) / MIB)
        return
    before = _peak_kib()
    loss(z, labels).backward()
    print((_peak_kib() - before) / 2**10)


def _peak_kib() -> int:
    """Return the largest resident set of this process so far; ru_maxrss would begin with that of its parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def errors(n: int, dimension: int, device: str) -> dict[str, float]:
    """Return how far the float32 loss and its gradient are from a float64 matrix, relative to the largest entry."""
    exact, labels = vectors(n, dimension, device, torch.float64)
    expected = matrix(exact, labels)
    expected.backward()
    z = exact.detach().float().requires_grad_()
    loss = streamed(z, labels)
    loss.backward()
    assert exact.grad is not None
    assert z.grad is not None
    gradient = (z.grad - exact.grad).abs().max() / exact.grad.abs().max()
    return {"loss": abs(loss.item() / expected.item() - 1), "gradient": gradient.item()}


def products_seconds(n: int, dimension: int, device: str) -> float:
    """Return the median seconds of three products of N x D and D x N or N x N and N x D, in strips that fit."""
    z, _ = vectors(n, dimension, device)
    z = z.detach()
    strips = z.split(max(1, 2**26 // n))

    def products() -> None:
        for strip in strips:
            similarity = strip @ z.T
            torch.mm(strip, z.T, out=similarity)
            torch.mm(similarity, z)

    seconds = []
    for _ in range(4):
        _wait(z)
        start = time.perf_counter()
        products()
        _wait(z)
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


def measure(ns: Sequence[int], dimensions: Sequence[int], device: str) -> dict[str, Any]:
    """Return all tables."""
    origin = provenance(device)
    sizes = []
    for dimension in dimensions:
        for n in tqdm(ns, desc=f"D = {dimension}"):
            losses = LOSSES if n <= LARGEST_MATRIX else {"streamed": streamed}
            seconds = times(losses, n, dimension, device)
            memory = {name: peak_mib(name, n, dimension, device) for name in losses}
            products = products_seconds(n, dimension, device)
            sizes.append({"n": n, "d": dimension, "seconds": seconds, "mib": memory, "products_seconds": products})
    n = min(FORMS_SIZE, max(ns))
    forms = {
        "n": n,
        "d": FORMS_DIMENSION,
        "seconds": times(FORMS, n, FORMS_DIMENSION, device),
        "mib": {name: peak_mib(name, n, FORMS_DIMENSION, device) for name in FORMS},
    }
    n = min(CHECKED_SIZE, max(ns))
    checked = [{"d": dimension, **errors(n, dimension, device)} for dimension in dimensions]
    # glibc's: whether freed memory goes back to the system decides much of the time of a matrix of all pairs
    allocator = {key: value for key, value in sorted(os.environ.items()) if key.startswith("MALLOC_")}
    return {**origin, "environment": allocator, "sizes": sizes, "forms": forms, "errors": checked, "checked_n": n}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: %(default)s")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--dimensions", type=int, nargs="+", default=DIMENSIONS, metavar="D", help="default: %(default)s"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write; default: print it")
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS, metavar=("LOSS", "N", "D"))
    args = parser.parse_args(argv)
    if args.memory:
        name, n, dimension = args.memory
        print_memory(name, int(n), int(dimension), args.device)
        return 0
    content = measure(args.sizes, args.dimensions, args.device)
    if args.out is None:
        print(json.dumps(content, indent=1))
    else:
        write_json(content, args.out)
        print(f"written: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
