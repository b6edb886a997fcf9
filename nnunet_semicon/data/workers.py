"""Worker processes around the loaders: nnU-Net's own, but with torch seeded in each."""

from typing import Any

import numpy as np
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

SECONDS_TO_END = 10  # for a thread, as in batchgenerators


def start_workers(train: Any, val: Any, entropy: list[int] | None, pin_memory: bool) -> tuple[Any, Any]:
    """Return running augmenters around a training and a validation loader, as many processes as nnU-Net would use.

    Forked workers share the parent's torch state, and nnU-Net seeds only numpy: without seeds of their own all workers
    would draw the same flips. ``nnUNet_n_proc_DA=0`` loads in the training process, with its random state.

    Args:
        train: endless iterator over batches.
        val: the same for validation.
        entropy: whole numbers to derive the seeds from; None: new ones every time.
        pin_memory: for CUDA.
    """
    workers = get_allowed_n_proc_DA()
    if workers == 0:
        augmenters = SingleThreadedAugmenter(train, None), SingleThreadedAugmenter(val, None)
    else:
        val_workers = max(1, workers // 2)
        seeds = [int(seed) for seed in np.random.SeedSequence(entropy).generate_state(workers + val_workers)]
        shared = {"transform": None, "pin_memory": pin_memory, "wait_time": 0.002}
        augmenters = (
            NonDetMultiThreadedAugmenter(
                train, num_processes=workers, num_cached=max(6, workers // 2), seeds=seeds[:workers], **shared
            ),
            NonDetMultiThreadedAugmenter(
                val, num_processes=val_workers, num_cached=max(3, workers // 4), seeds=seeds[workers:], **shared
            ),
        )
    try:
        for augmenter in augmenters:
            next(augmenter)  # starts the processes, as nnU-Net does
    except BaseException:
        for augmenter in augmenters:
            stop_workers(augmenter)
        raise
    return augmenters


def stop_workers(augmenter: Any) -> None:
    """End an augmenter's processes; nothing to do for None or a single-threaded one."""
    if isinstance(augmenter, NonDetMultiThreadedAugmenter):
        if augmenter.initialized:
            _end_thread(augmenter)
        augmenter._finish()


def _end_thread(augmenter: NonDetMultiThreadedAugmenter) -> None:
    """End the thread that receives batches, before the workers end.

    A tensor can be received only from a living worker: the thread would print a traceback now and then.
    """
    ends = augmenter.abort_event
    ends.is_set = lambda: True  # in this process; the workers go on
    augmenter.results_loop_thread.join(timeout=SECONDS_TO_END)
    del ends.is_set
