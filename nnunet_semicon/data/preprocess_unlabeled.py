"""Preprocesses ``imagesUn/`` with the plans of the labeled scans, through nnU-Net's own preprocessor.

A case gets into the manifest only after its files are in place: a kill at any moment leaves whole cases, and the rest
is done again by the next run.
"""

import contextlib
import errno
import gzip
import io
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from os.path import basename, join
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tqdm import tqdm

from nnunet_semicon.data.images_un import channel_names, scan_images_un
from nnunet_semicon.data.unlabeled import (
    OUTPUTS,
    Manifest,
    fingerprint_of,
    plans_hash,
    source_files,
    unlabeled_folder,
    unlabeled_status,
)
from nnunet_semicon.errors import UserError, listing
from nnunet_semicon.files import explain_unwritable

CANNOT_WRITE = "make room on the disk or correct the permissions; finished cases are kept, and the same command goes on"
PARTIAL = ".partial"  # holds the case being written; hidden, inside the target so that os.replace stays on one disk
NEARLY_FULL = 2**26  # bytes; where writing failed on a disk with less, that is the reason


@dataclass(frozen=True)
class Preprocessed:
    """What :func:`preprocess_unlabeled` did."""

    folder: str
    n_cases: int  # in imagesUn
    n_up_to_date: int  # of those, left alone
    failures: dict[str, str]  # case -> one sentence that names the file


def preprocess_unlabeled(
    raw_dataset_folder: str,
    preprocessed_base: str,
    plans_manager: PlansManager,
    configuration_name: str,
    dataset_json: dict,
    n_processes: int,
    force: bool = False,
) -> Preprocessed:
    """Preprocess every case of ``imagesUn`` that is not up to date, with nnU-Net's own preprocessor.

    Cases that are no longer in ``imagesUn`` are removed. A case that cannot be read is reported in the result; the
    others still finish.

    Args:
        raw_dataset_folder: ``<nnUNet_raw>/<Dataset>``.
        preprocessed_base: ``<nnUNet_preprocessed>/<Dataset>``.
        plans_manager: Plans of the labeled cases.
        configuration_name: Configuration in these plans.
        dataset_json: Content of ``dataset.json``.
        n_processes: Number of worker processes, >= 1.
        force: Redo all cases.

    Raises:
        UserError: see :func:`scan_images_un`; or a worker process died, or nothing can be written.
    """
    states = unlabeled_status(raw_dataset_folder, preprocessed_base, plans_manager, configuration_name, dataset_json)
    images = scan_images_un(raw_dataset_folder, dataset_json)
    todo = [case for case in images if force or states[case] != "ready"]
    folder = unlabeled_folder(preprocessed_base, plans_manager.get_configuration(configuration_name).data_identifier)

    # First forget what is about to change: from here on the manifest names only files that are whole and wanted.
    recorded = Manifest.read(folder).cases
    manifest = Manifest(
        plans_hash(plans_manager, configuration_name),
        {case: recorded[case] for case in images if case not in todo},
    )
    result = Preprocessed(folder, len(images), len(images) - len(todo), {})
    with explain_unwritable(folder, CANNOT_WRITE):
        os.makedirs(folder, exist_ok=True)
        manifest.write(folder)
        _remove_outputs(folder, keep=images)
        shutil.rmtree(join(folder, PARTIAL), ignore_errors=True)
        if todo:
            inputs = {case: images[case] for case in todo}
            _preprocess(result, manifest, inputs, plans_manager, configuration_name, dataset_json, n_processes)
    return result


def _preprocess(
    result: Preprocessed,
    manifest: Manifest,
    images: dict[str, list[str]],
    plans_manager: PlansManager,
    configuration_name: str,
    dataset_json: dict,
    n_processes: int,
) -> None:
    """Preprocess cases, and note each of them in the manifest or among the failures."""
    folder, partial = result.folder, join(result.folder, PARTIAL)
    os.makedirs(partial)
    # Spawned, as nnU-Net does: forking a process in which torch has started threads can dead-lock.
    pool = ProcessPoolExecutor(
        min(n_processes, len(images)), multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    try:
        running = {
            pool.submit(
                _preprocess_case, join(partial, case), files, plans_manager, configuration_name, dataset_json
            ): case
            for case, files in images.items()
        }
        for done in tqdm(as_completed(running), desc=configuration_name, total=len(running), unit="case"):
            case = running[done]
            try:
                manifest.cases[case] = done.result()
            except UserError as error:
                result.failures[case] = str(error)
                continue
            for suffix in OUTPUTS:
                os.replace(join(partial, case + suffix), join(folder, case + suffix))
            manifest.write(folder)
    except BrokenProcessPool:
        raise UserError(
            f"a worker process died while preprocessing configuration '{configuration_name}', most likely because "
            f"memory ran out; finished cases are kept, run the command again with fewer processes than {n_processes} "
            "(-np)"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
        shutil.rmtree(partial, ignore_errors=True)


def _remove_outputs(folder: str, keep: Iterable[str]) -> None:
    """Remove the preprocessed files of all other cases."""
    wanted = {case + suffix for case in keep for suffix in OUTPUTS}
    for name in os.listdir(folder):
        if name.endswith(OUTPUTS) and name not in wanted:
            os.remove(join(folder, name))


def _start_worker() -> None:
    """End a worker quietly with Ctrl-C, and also when its parent was killed (it would wait for work for ever)."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def _preprocess_case(
    output: str, image_files: list[str], plans_manager: PlansManager, configuration_name: str, dataset_json: dict
) -> list[dict[str, Any]]:
    """Preprocess one case to ``output`` + '.b2nd', ... and return the fingerprints of its source files.

    Raises:
        UserError: Whatever the reader or the preprocessor failed with, as one sentence.
        OSError: The files are fine, but nothing can be written.
    """
    configuration = plans_manager.get_configuration(configuration_name)
    folder, case = os.path.split(output)
    n_channels = len(channel_names(dataset_json))
    printed = io.StringIO()
    try:
        # before the images are read: a file that changes meanwhile will be seen as changed
        sources = [fingerprint_of(file) for file in source_files(image_files)]
        for file in image_files:
            _check_complete(file)
        with contextlib.redirect_stdout(printed):
            preprocessor = configuration.preprocessor_class(verbose=False)
            preprocessor.run_case_save(output, image_files, None, plans_manager, configuration, dataset_json)
    except Exception as error:  # readers and preprocessors raise anything; it concerns this case alone
        reason = _culprit(image_files, plans_manager, n_channels)
        if reason is None and isinstance(error, OSError):
            raise  # not of this case: nothing can be written
        if reason is None and shutil.disk_usage(folder).free < NEARLY_FULL:  # blosc2 does not say so
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder) from None
        otherwise = f"{listing(image_files)} cannot be preprocessed ({_last_line(error)}): repair or remove it"
        raise UserError(reason or otherwise) from None
    print(printed.getvalue(), end="")  # warnings of the reader
    data, *_ = nnUNetDatasetBlosc2(folder, [case]).load_case(case)
    if len(data) != n_channels:
        raise UserError(_other_channels(listing(image_files), len(data), n_channels))
    if not np.isfinite(data[:]).all():
        # one such voxel in the unlabeled stream would turn the network's weights into NaN
        raise UserError(
            f"{listing(image_files)}: the preprocessed image has values that are not finite; replace NaN and infinity "
            "in the file by a number, or remove it"
        )
    return sources


def _check_complete(file: str) -> None:
    """Read a gzip file to its end: SimpleITK silently fills what a truncated one lacks with zeros.

    Raises:
        EOFError, OSError, zlib.error: The file is truncated or damaged.
    """
    with open(file, "rb") as raw:
        if raw.read(2) != b"\x1f\x8b":
            return
        raw.seek(0)
        with gzip.open(raw) as stream:
            while stream.read(1 << 20):
                pass


def _culprit(image_files: Sequence[str], plans_manager: PlansManager, n_channels: int) -> str | None:
    """Say in one sentence which file of a case is to blame, after reading them one by one; None: none of them."""
    geometry = []
    per_file = n_channels // len(image_files)
    for file in image_files:
        try:
            _check_complete(file)
            with contextlib.redirect_stdout(io.StringIO()):
                image, properties = plans_manager.image_reader_writer_class().read_images([file])
        except Exception as reason:
            return f"{file} cannot be read ({_last_line(reason)}): replace or remove it"
        if len(image) != per_file:
            return _other_channels(file, len(image), per_file)
        geometry.append(f"{image.shape[1:]} voxels of {tuple(round(float(s), 4) for s in properties['spacing'])} mm")
    if len(set(geometry)) > 1:
        return (
            f"the channels of a case must have one shape and spacing, but {basename(image_files[0])} and its other "
            f"channels have {'; '.join(geometry)}: resample them to the same grid or remove them"
        )
    return None


def _other_channels(files: str, found: int, expected: int) -> str:
    remedy = "split it into one file per channel" if expected == 1 else "convert it"
    channels = f"{found} channel{'s' * (found != 1)}"
    return f"{files} holds {channels}, but with dataset.json it should hold {expected}: {remedy}, or remove it"


def _last_line(error: Exception) -> str:
    """The last line of a message (libraries put the reason there) or, without one, the kind of error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
