"""Preprocessed scans without labels: where they are, and whether they are up to date.

They lie beside the labeled preprocessed folder, never in it: nnU-Net refuses foreign files there, and fold ``all``
would train on them. ``manifest.json`` in that folder says what the files were made from::

    {"plans_hash": "...", "cases": {"case": [{"name": ..., "size": ..., "mtime_ns": ..., "sha256": ...}, ...]}}

A case counts as preprocessed only once it is in the manifest.

Below, ``raw_dataset_folder`` is ``<nnUNet_raw>/<Dataset>`` and ``preprocessed_base`` is
``<nnUNet_preprocessed>/<Dataset>``.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from os.path import basename, isdir, isfile, join
from typing import TYPE_CHECKING, Any, Literal

from nnunet_semicon.data.images_un import FOLDER, scan_images_un
from nnunet_semicon.errors import UserError, listing
from nnunet_semicon.files import sha256, write_json

if TYPE_CHECKING:  # it loads torch, which is not needed to find the files
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

MANIFEST = "manifest.json"
OUTPUTS = ("_seg.b2nd", ".b2nd", ".pkl")

State = Literal["ready", "missing", "outdated"]


def unlabeled_folder(preprocessed_base: str, data_identifier: str) -> str:
    """Return the folder of the preprocessed unlabeled cases, a sibling of the labeled ``data_identifier`` folder."""
    return join(preprocessed_base, f"{data_identifier}_unlabeled")


def plans_hash(plans_manager: "PlansManager", configuration_name: str) -> str:
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
class Manifest:
    """What the files in a folder of preprocessed unlabeled cases were made from."""

    plans_hash: str
    cases: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str) -> "Manifest":
        """Read the manifest; without one that can be read no case counts as preprocessed."""
        try:
            with open(join(folder, MANIFEST)) as file:
                return cls(**json.load(file))
        except (OSError, ValueError, TypeError):
            return cls(plans_hash="")

    def write(self, folder: str) -> None:
        """Write the manifest so that a reader, or a kill, never meets half of it."""
        content = {"plans_hash": self.plans_hash, "cases": dict(sorted(self.cases.items()))}
        write_json(join(folder, MANIFEST), content, indent=1)


def unlabeled_status(
    raw_dataset_folder: str,
    preprocessed_base: str,
    plans_manager: "PlansManager",
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
    manifest = Manifest.read(folder)
    same_plans = manifest.plans_hash == plans_hash(plans_manager, configuration_name)

    def state(case: str) -> State:
        if case not in manifest.cases or not has_outputs(folder, case):
            return "missing"
        return "ready" if same_plans and _is_unchanged(manifest.cases[case], images[case]) else "outdated"

    return {case: state(case) for case in images}


def unlabeled_cases(raw_dataset_folder: str, folder: str, dataset_json: dict) -> list[str]:
    """Return the sorted case ids of ``imagesUn``, preprocessed or not; without raw files, those in ``folder``.

    Args:
        raw_dataset_folder: ``<nnUNet_raw>/<Dataset>``, may be missing.
        folder: see :func:`unlabeled_folder`.
        dataset_json: content of nnU-Net's ``dataset.json``.

    Raises:
        UserError: see :func:`scan_images_un`.
    """
    if isdir(raw_dataset_folder):
        return sorted(scan_images_un(raw_dataset_folder, dataset_json))
    return sorted(Manifest.read(folder).cases)


def require_preprocessed(
    raw_dataset_folder: str,
    preprocessed_base: str,
    plans_manager: "PlansManager",
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
    manifest = Manifest.read(folder)
    if isdir(raw_dataset_folder):
        states = unlabeled_status(
            raw_dataset_folder, preprocessed_base, plans_manager, configuration_name, dataset_json
        )
        source = join(raw_dataset_folder, FOLDER)
    else:
        same_plans = manifest.plans_hash == plans_hash(plans_manager, configuration_name)
        states = {
            case: "missing" if not has_outputs(folder, case) else "ready" if same_plans else "outdated"
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


def preprocess_command(preprocessed_base: str, plans_manager: "PlansManager", configuration_name: str) -> str:
    """Return the ``semicon preprocess`` line for this dataset, configuration and plans."""
    return (
        f"semicon preprocess {dataset_option(preprocessed_base)} -c {configuration_name}{plans_option(plans_manager)}"
    )


def dataset_option(preprocessed_base: str) -> str:
    """Return ``-d 4`` for the folder ``.../Dataset004_Hippocampus``."""
    return f"-d {int(basename(os.path.normpath(preprocessed_base))[7:10])}"


def plans_option(plans_manager: "PlansManager") -> str:
    """Return ``' -p NAME'``, or nothing for nnU-Net's default plans."""
    return "" if plans_manager.plans_name == "nnUNetPlans" else f" -p {plans_manager.plans_name}"


def has_outputs(folder: str, case: str) -> bool:
    """Return whether all files of a preprocessed case are there."""
    return all(isfile(join(folder, case + suffix)) for suffix in OUTPUTS)


def source_files(image_files: Sequence[str]) -> list[str]:
    """The images of a case and, if there is one, the file with their spacing that the TIFF reader looks for."""
    stem, ending = os.path.splitext(image_files[0])
    sidecar = stem.removesuffix("_0000") + ".json"
    return [*image_files, sidecar] if ending.lower() in (".tif", ".tiff") and isfile(sidecar) else list(image_files)


def _is_unchanged(recorded: list[dict[str, Any]], image_files: Sequence[str]) -> bool:
    files = source_files(image_files)
    if [entry["name"] for entry in recorded] != [basename(file) for file in files]:
        return False
    for entry, file in zip(recorded, files, strict=True):
        if not isfile(file) or os.stat(file).st_size != entry["size"]:
            return False
        if os.stat(file).st_mtime_ns != entry["mtime_ns"] and sha256(file) != entry["sha256"]:
            return False
    return True


def fingerprint_of(file: str) -> dict[str, Any]:
    """Return the manifest's entry of a source file."""
    stat = os.stat(file)
    return {
        "name": basename(file),
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "sha256": sha256(file),
    }
