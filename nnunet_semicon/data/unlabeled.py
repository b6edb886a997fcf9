"""Scans without labels: ``imagesUn/`` of the raw dataset, preprocessed with the plans of the labeled scans.

The result lies beside the labeled preprocessed folder, never in it: nnU-Net refuses foreign files there, and fold
``all`` would train on them. ``manifest.json`` in that folder says what the files were made from::

    {"plans_hash": "...", "cases": {"case": [{"name": ..., "size": ..., "mtime_ns": ..., "sha256": ...}, ...]}}

A case counts as preprocessed only once it is in the manifest, and gets there only after its files are in place: a
kill at any moment leaves whole cases, and the rest is done again by the next run.

Below, ``raw_dataset_folder`` is ``<nnUNet_raw>/<Dataset>`` and ``preprocessed_base`` is
``<nnUNet_preprocessed>/<Dataset>``.
"""

import contextlib
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from os.path import basename, isdir, isfile, join
from typing import Any, Literal

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tqdm import tqdm

from nnunet_semicon.errors import UserError, listing

FOLDER = "imagesUn"
MANIFEST = "manifest.json"
PARTIAL = ".partial"  # holds the case being written; hidden, inside the target so that os.replace stays on one disk
OUTPUTS = ("_seg.b2nd", ".b2nd", ".pkl")

# Names that people give the folder, spelled without case, '_', '-' and blanks.
LOOKALIKES = {"imagesu", "imagesun", "imagesuns", "imagesunlab", "imagesunlabel", "imagesunlabeled", "imagesunlabelled"}

State = Literal["ready", "missing", "outdated"]


def unlabeled_folder(preprocessed_base: str, data_identifier: str) -> str:
    """Return the folder of the preprocessed unlabeled cases, a sibling of the labeled ``data_identifier`` folder."""
    return join(preprocessed_base, f"{data_identifier}_unlabeled")


# --- what lies in imagesUn ---------------------------------------------------------------------------------------


def scan_images_un(raw_dataset_folder: str, dataset_json: dict) -> dict[str, list[str]]:
    """Return the channel files of every case in ``imagesUn/``, sorted by case and channel.

    Hidden files are ignored. Nothing is opened: whether a file can be read shows when it is preprocessed.

    Args:
        raw_dataset_folder: ``<nnUNet_raw>/<Dataset>``.
        dataset_json: Content of nnU-Net's ``dataset.json`` (``file_ending``, ``channel_names``, optionally
            ``dataset``).

    Returns:
        Case id -> paths, one per channel; empty if there is no ``imagesUn`` or nothing in it.

    Raises:
        UserError: The folder has another name, or holds something that nnU-Net could not read as a case of this
            dataset: a subfolder, another file ending, no ``_0000`` suffix, other channels than ``dataset.json``
            lists, or a name that is also in ``imagesTr``.
    """
    if not isdir(raw_dataset_folder):
        return {}
    _refuse_lookalikes(raw_dataset_folder)
    folder = join(raw_dataset_folder, FOLDER)
    if not os.path.lexists(folder):
        return {}
    if not isdir(folder):
        raise UserError(f"{folder} is a file or a broken link: expected a folder with unlabeled images; repair it")
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    ending = dataset_json["file_ending"]

    subfolders = [name for name in names if isdir(join(folder, name))]
    if subfolders:
        raise UserError(
            f"{folder} contains subfolders ({listing(subfolders)}), but images are only looked for directly in "
            f"{FOLDER}: move their files up and remove them"
        )
    channels_of = _channels_of_cases(names, ending)
    foreign = [name for name in names if not name.endswith(ending) and not _is_sidecar(name, ending, channels_of)]
    if foreign:
        raise UserError(
            f"{folder} contains files that do not end with '{ending}', the file_ending in dataset.json "
            f"({listing(foreign)}): convert or remove them"
        )
    no_suffix = [name for name in names if name.endswith(ending) and not _channel_pattern(ending).fullmatch(name)]
    if no_suffix:
        stem = no_suffix[0].removesuffix(ending)
        raise UserError(
            f"{folder} contains files without a channel suffix ({listing(no_suffix)}): nnU-Net expects four digits "
            f"before the file ending, so rename {no_suffix[0]} to {stem}_0000{ending}"
        )
    _check_cases(folder, channels_of, dataset_json, _labeled_names(raw_dataset_folder, dataset_json))
    return {
        case: [join(folder, f"{case}_{channel}{ending}") for channel in channels]
        for case, channels in sorted(channels_of.items())
    }


def _refuse_lookalikes(raw_dataset_folder: str) -> None:
    names = sorted(os.listdir(raw_dataset_folder))
    for name in names:
        plain = re.sub(r"[\s_-]", "", name).lower()
        if name != FOLDER and plain in LOOKALIKES and isdir(join(raw_dataset_folder, name)):
            remedy = f"move its files into {FOLDER} and remove it" if FOLDER in names else f"rename {name} to {FOLDER}"
            raise UserError(
                f"{join(raw_dataset_folder, name)} looks like the folder of unlabeled images, which must be called "
                f"{FOLDER}: {remedy}"
            )


def _channel_pattern(ending: str) -> re.Pattern[str]:
    return re.compile(rf"(?P<case>.+)_(?P<channel>\d{{4}}){re.escape(ending)}")


def _channels_of_cases(names: Iterable[str], ending: str) -> dict[str, list[str]]:
    """Group file names by case: case -> its sorted four-digit channel suffixes."""
    channels: dict[str, list[str]] = {}
    for match in filter(None, map(_channel_pattern(ending).fullmatch, sorted(names))):
        channels.setdefault(match["case"], []).append(match["channel"])
    return channels


def _is_sidecar(name: str, ending: str, cases: Iterable[str]) -> bool:
    """Whether this is the file with the spacing that nnU-Net's reader of 3D TIFF files expects beside a case."""
    return ending.lower() in (".tif", ".tiff") and name.endswith(".json") and name.removesuffix(".json") in cases


def _labeled_names(raw_dataset_folder: str, dataset_json: dict) -> set[str]:
    """Case ids of ``imagesTr``, or the keys of an explicit ``dataset`` listing."""
    if "dataset" in dataset_json:
        return set(dataset_json["dataset"])
    folder = join(raw_dataset_folder, "imagesTr")
    names = os.listdir(folder) if isdir(folder) else []
    return set(_channels_of_cases(names, dataset_json["file_ending"]))


def _check_cases(folder: str, channels_of: dict[str, list[str]], dataset_json: dict, labeled: set[str]) -> None:
    n_channels = len(_channel_names(dataset_json))
    expected = [f"{channel:04d}" for channel in range(n_channels)]
    for case, channels in channels_of.items():
        if channels != expected:
            raise UserError(
                f"case {case} in {folder} has the channels {', '.join(channels)}, but dataset.json lists {n_channels}: "
                f"expected exactly {', '.join(expected)}; add the missing files or remove those that are too many"
            )
    both = sorted(labeled & set(channels_of))
    if both:
        raise UserError(
            f"{folder} contains cases that have the name of a case in imagesTr ({listing(both)}): remove them if they "
            "are the same scans, otherwise rename them"
        )
    # x_seg would be stored in x_seg.b2nd, where the segmentation of x lies
    reserved = [case for case in channels_of if case.endswith("_seg")]
    if reserved:
        raise UserError(f"{folder} contains case names that end with '_seg' ({listing(reserved)}): rename the files")


def _channel_names(dataset_json: dict) -> dict:
    """The channels of a dataset; 'modality' is the key that older files use."""
    return dataset_json["modality"] if "modality" in dataset_json else dataset_json["channel_names"]


# --- what is preprocessed ----------------------------------------------------------------------------------------


def plans_hash(plans_manager: PlansManager, configuration_name: str) -> str:
    """Return a hash of everything in the plans that the stored arrays depend on.

    Patch and batch size, network and ``semicon`` block are not part of it: a configuration that only differs in
    those uses the same data.
    """
    configuration = plans_manager.get_configuration(configuration_name).configuration
    keys = (
        "preprocessor_name",
        "spacing",
        "normalization_schemes",
        "use_mask_for_norm",
        "resampling_fn_data",
        "resampling_fn_data_kwargs",
        "resampling_fn_seg",
        "resampling_fn_seg_kwargs",
    )
    relevant = {key: configuration.get(key) for key in keys} | {
        "transpose_forward": plans_manager.transpose_forward,
        "image_reader_writer": plans_manager.plans["image_reader_writer"],
        "foreground_intensity_properties": plans_manager.foreground_intensity_properties_per_channel,
    }
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


@dataclass
class _Manifest:
    """What the files in a folder of preprocessed unlabeled cases were made from."""

    plans_hash: str
    cases: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str) -> "_Manifest":
        """Read the manifest; without a legible one no case counts as preprocessed."""
        try:
            with open(join(folder, MANIFEST)) as file:
                return cls(**json.load(file))
        except (FileNotFoundError, ValueError, TypeError):
            return cls(plans_hash="")

    def write(self, folder: str) -> None:
        """Write the manifest so that a reader, or a kill, never meets half of it."""
        temporary = join(folder, f".{MANIFEST}.tmp")
        with open(temporary, "w") as file:
            json.dump({"plans_hash": self.plans_hash, "cases": dict(sorted(self.cases.items()))}, file, indent=1)
        os.replace(temporary, join(folder, MANIFEST))


def unlabeled_status(
    raw_dataset_folder: str,
    preprocessed_base: str,
    plans_manager: PlansManager,
    configuration_name: str,
    dataset_json: dict,
) -> dict[str, State]:
    """Return for every case of ``imagesUn`` whether it can be trained on.

    A file with the recorded size and modification time counts as unchanged; only if the time differs is it hashed.

    Returns:
        Case id -> ``'ready'``, ``'missing'`` (not preprocessed) or ``'outdated'`` (with other plans or from other
        images).

    Raises:
        UserError: see :func:`scan_images_un`.
    """
    images = scan_images_un(raw_dataset_folder, dataset_json)
    folder = unlabeled_folder(preprocessed_base, plans_manager.get_configuration(configuration_name).data_identifier)
    manifest = _Manifest.read(folder)
    same_plans = manifest.plans_hash == plans_hash(plans_manager, configuration_name)

    def state(case: str) -> State:
        if case not in manifest.cases or not _has_outputs(folder, case):
            return "missing"
        return "ready" if same_plans and _is_unchanged(manifest.cases[case], images[case]) else "outdated"

    return {case: state(case) for case in images}


def require_preprocessed(
    raw_dataset_folder: str,
    preprocessed_base: str,
    plans_manager: PlansManager,
    configuration_name: str,
    dataset_json: dict,
) -> list[str]:
    """Return the sorted case ids of ``imagesUn``, all of them ready to be trained on.

    On a machine that has only the preprocessed data (no ``raw_dataset_folder``) the manifest decides alone.

    Returns:
        The case ids; an empty list if there are no unlabeled images.

    Raises:
        UserError: A case is not preprocessed, or with other plans, or from other images; the message ends with the
            command to run. Also whatever :func:`scan_images_un` refuses.
    """
    folder = unlabeled_folder(preprocessed_base, plans_manager.get_configuration(configuration_name).data_identifier)
    manifest = _Manifest.read(folder)
    if isdir(raw_dataset_folder):
        states = unlabeled_status(
            raw_dataset_folder, preprocessed_base, plans_manager, configuration_name, dataset_json
        )
        source = join(raw_dataset_folder, FOLDER)
    else:
        same_plans = manifest.plans_hash == plans_hash(plans_manager, configuration_name)
        states = {
            case: "missing" if not _has_outputs(folder, case) else "ready" if same_plans else "outdated"
            for case in manifest.cases
        }
        source = folder
    if all(state == "ready" for state in states.values()):
        return sorted(states)

    missing = [case for case, state in states.items() if state == "missing"]
    outdated = [case for case, state in states.items() if state == "outdated"]
    problems = []
    if missing:
        problems.append(f"{len(missing)} not preprocessed ({listing(missing)})")
    if outdated:
        other_plans = manifest.plans_hash != plans_hash(plans_manager, configuration_name)
        cause = "with other plans" if other_plans else "from other images"
        problems.append(f"{len(outdated)} preprocessed {cause} ({listing(outdated)})")
    raise UserError(
        f"of the {len(states)} unlabeled cases in {source}, configuration '{configuration_name}' finds "
        f"{' and '.join(problems)}; run: {preprocess_command(preprocessed_base, plans_manager, configuration_name)}"
    )


def preprocess_command(preprocessed_base: str, plans_manager: PlansManager, configuration_name: str) -> str:
    """Return the ``semicon preprocess`` line for this dataset, configuration and plans."""
    return (
        f"semicon preprocess {dataset_option(preprocessed_base)} -c {configuration_name}{plans_option(plans_manager)}"
    )


def dataset_option(preprocessed_base: str) -> str:
    """Return ``-d 4`` for the folder ``.../Dataset004_Hippocampus``."""
    return f"-d {int(basename(os.path.normpath(preprocessed_base))[7:10])}"


def plans_option(plans_manager: PlansManager) -> str:
    """Return ``' -p NAME'``, or nothing for nnU-Net's default plans."""
    return "" if plans_manager.plans_name == "nnUNetPlans" else f" -p {plans_manager.plans_name}"


def _has_outputs(folder: str, case: str) -> bool:
    return all(isfile(join(folder, case + suffix)) for suffix in OUTPUTS)


def _source_files(image_files: Sequence[str]) -> list[str]:
    """The images of a case and, if there is one, the file with their spacing that the TIFF reader looks for."""
    stem, ending = os.path.splitext(image_files[0])
    sidecar = stem.removesuffix("_0000") + ".json"
    return [*image_files, sidecar] if ending.lower() in (".tif", ".tiff") and isfile(sidecar) else list(image_files)


def _is_unchanged(recorded: list[dict[str, Any]], image_files: Sequence[str]) -> bool:
    files = _source_files(image_files)
    if [entry["name"] for entry in recorded] != [basename(file) for file in files]:
        return False
    for entry, file in zip(recorded, files, strict=True):
        if not isfile(file) or os.stat(file).st_size != entry["size"]:
            return False
        if os.stat(file).st_mtime_ns != entry["mtime_ns"] and _sha256(file) != entry["sha256"]:
            return False
    return True


def _fingerprint(file: str) -> dict[str, Any]:
    stat = os.stat(file)
    return {
        "name": basename(file),
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "sha256": _sha256(file),
    }


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# --- preprocessing -----------------------------------------------------------------------------------------------


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
        UserError: see :func:`scan_images_un`; or a worker process died.
    """
    states = unlabeled_status(raw_dataset_folder, preprocessed_base, plans_manager, configuration_name, dataset_json)
    images = scan_images_un(raw_dataset_folder, dataset_json)
    todo = [case for case in images if force or states[case] != "ready"]
    folder = unlabeled_folder(preprocessed_base, plans_manager.get_configuration(configuration_name).data_identifier)
    partial = join(folder, PARTIAL)

    # First forget what is about to change: from here on the manifest names only files that are whole and wanted.
    recorded = _Manifest.read(folder).cases
    manifest = _Manifest(
        plans_hash(plans_manager, configuration_name),
        {case: recorded[case] for case in images if case not in todo},
    )
    os.makedirs(folder, exist_ok=True)
    manifest.write(folder)
    _remove_outputs(folder, keep=images)
    shutil.rmtree(partial, ignore_errors=True)

    result = Preprocessed(folder, len(images), len(images) - len(todo), {})
    if not todo:
        return result
    os.makedirs(partial)
    # Spawned, as nnU-Net does: forking a process in which torch has started threads can dead-lock.
    pool = ProcessPoolExecutor(
        min(n_processes, len(todo)), multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    try:
        running = {
            pool.submit(
                _preprocess_case, join(partial, case), images[case], plans_manager, configuration_name, dataset_json
            ): case
            for case in todo
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
    return result


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
    """
    configuration = plans_manager.get_configuration(configuration_name)
    printed = io.StringIO()
    try:
        # before the images are read: a file that changes meanwhile will be seen as changed
        sources = [_fingerprint(file) for file in _source_files(image_files)]
        for file in image_files:
            _check_complete(file)
        with contextlib.redirect_stdout(printed):
            preprocessor = configuration.preprocessor_class(verbose=False)
            preprocessor.run_case_save(output, image_files, None, plans_manager, configuration, dataset_json)
    except Exception as error:  # readers and preprocessors raise anything; it concerns this case alone
        raise UserError(_explain(error, image_files, plans_manager)) from None
    print(printed.getvalue(), end="")  # warnings of the reader
    folder, case = os.path.split(output)
    data, *_ = nnUNetDatasetBlosc2(folder, [case]).load_case(case)
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


def _explain(error: Exception, image_files: Sequence[str], plans_manager: PlansManager) -> str:
    """Say in one sentence why a case failed: read its files one by one to find the culprit."""
    geometry = []
    for file in image_files:
        try:
            _check_complete(file)
            with contextlib.redirect_stdout(io.StringIO()):
                image, properties = plans_manager.image_reader_writer_class().read_images([file])
        except Exception as reason:
            return f"{file} cannot be read ({_last_line(reason)}): replace or remove it"
        if len(image) != 1:
            return f"{file} holds {len(image)} channels, expected one per file: split or remove it"
        geometry.append(f"{image.shape[1:]} voxels of {tuple(round(float(s), 4) for s in properties['spacing'])} mm")
    if len(set(geometry)) > 1:
        return (
            f"the channels of a case must have one shape and spacing, but {basename(image_files[0])} and its other "
            f"channels have {'; '.join(geometry)}: resample them to the same grid or remove them"
        )
    return f"{listing(image_files)} cannot be preprocessed ({_last_line(error)}): repair or remove it"


def _last_line(error: Exception) -> str:
    """The last line of a message (libraries put the reason there) or, without one, the kind of error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
