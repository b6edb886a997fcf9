"""What lies in ``imagesUn/`` of a raw dataset: the scans without labels, and what is wrong with them.

Below, ``raw_dataset_folder`` is ``<nnUNet_raw>/<Dataset>``.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping
from os.path import basename, isdir, join, normpath

from nnunet_semicon.errors import UserError, listing

FOLDER = "imagesUn"

# Names that people give the folder, spelled without case, '_', '-' and blanks.
LOOKALIKES = {"imagesu", "imagesun", "imagesuns", "imagesunlab", "imagesunlabel", "imagesunlabeled", "imagesunlabelled"}


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
            lists, or a name that is also in ``imagesTr``. Also what :func:`check_description` refuses.
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
    check_description(raw_dataset_folder, dataset_json)
    ending = dataset_json["file_ending"]

    subfolders = [name for name in names if isdir(join(folder, name))]
    if subfolders:
        raise UserError(
            f"{folder} contains subfolders ({listing(subfolders)}), but images are only looked for directly in "
            f"{FOLDER}: move their files up and remove them"
        )
    channels_of = channels_of_cases(names, ending)
    foreign = [name for name in names if not name.endswith(ending) and not _is_sidecar(name, ending, channels_of)]
    if foreign:
        raise UserError(
            f"{folder} contains files that do not end with '{ending}', the file_ending in dataset.json "
            f"({listing(foreign)}): convert or remove them"
        )
    refuse_missing_suffix(folder, names, ending)
    labeled = _labeled_channels(raw_dataset_folder, dataset_json)
    refuse_other_channels(folder, channels_of, labeled, dataset_json)
    _refuse_names(folder, channels_of, labeled)
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


def channels_of_cases(names: Iterable[str], ending: str) -> dict[str, list[str]]:
    """Group file names by case: case -> its sorted four-digit channel suffixes."""
    channels: dict[str, list[str]] = {}
    for match in filter(None, map(_channel_pattern(ending).fullmatch, sorted(names))):
        channels.setdefault(match["case"], []).append(match["channel"])
    return channels


def _is_sidecar(name: str, ending: str, cases: Iterable[str]) -> bool:
    """Whether this is the file with the spacing that nnU-Net's reader of 3D TIFF files expects beside a case."""
    return ending.lower() in (".tif", ".tiff") and name.endswith(".json") and name.removesuffix(".json") in cases


def _labeled_channels(raw_dataset_folder: str, dataset_json: dict) -> dict[str, list[str]]:
    """Channel files of each case of ``imagesTr``, or of an explicit ``dataset`` listing."""
    if "dataset" in dataset_json:
        return {case: _suffixes(len(entry["images"])) for case, entry in dataset_json["dataset"].items()}
    folder = join(raw_dataset_folder, "imagesTr")
    names = os.listdir(folder) if isdir(folder) else []
    return channels_of_cases(names, dataset_json["file_ending"])


def _suffixes(n_files: int) -> list[str]:
    return [f"{channel:04d}" for channel in range(n_files)]


def refuse_missing_suffix(folder: str, names: Iterable[str], ending: str) -> None:
    """Refuse images that do not say which channel they are.

    Raises:
        UserError: names them, and what the first one should be called.
    """
    pattern = _channel_pattern(ending)
    no_suffix = sorted(name for name in names if name.endswith(ending) and not pattern.fullmatch(name))
    if no_suffix:
        stem = no_suffix[0].removesuffix(ending)
        raise UserError(
            f"{folder} contains files without a channel suffix ({listing(no_suffix)}): nnU-Net expects four digits "
            f"before the file ending, so rename {no_suffix[0]} to {stem}_0000{ending}"
        )


def refuse_other_channels(
    folder: str, channels_of: Mapping[str, list[str]], labeled: Mapping[str, list[str]], dataset_json: dict
) -> None:
    """Refuse a case whose files are not those of its channels.

    Args:
        folder: where the cases lie.
        channels_of: case -> its channel suffixes, see :func:`channels_of_cases`.
        labeled: the same of ``imagesTr``, which tells whether one file holds all channels.
        dataset_json: content of ``dataset.json``.

    Raises:
        UserError: names the case, what it has and what was expected.
    """
    n_channels = len(channel_names(dataset_json))
    expected, whose = _suffixes(n_channels), f"dataset.json lists {n_channels}"
    if n_channels > 1 and labeled and all(channels == _suffixes(1) for channels in labeled.values()):
        # a color image is one file, whatever its channels
        expected, whose = _suffixes(1), "the cases of imagesTr are one file each"
    for case, channels in channels_of.items():
        if channels != expected:
            raise UserError(
                f"case {case} in {folder} has the channels {', '.join(channels)}, but {whose}: "
                f"expected exactly {', '.join(expected)}; add the missing files or remove those that are too many"
            )


def _refuse_names(folder: str, cases: Collection[str], labeled: Collection[str]) -> None:
    both = sorted(set(labeled) & set(cases))
    if both:
        raise UserError(
            f"{folder} contains cases that have the name of a case in imagesTr ({listing(both)}): remove them if they "
            "are the same scans, otherwise rename them"
        )
    # x_seg would be stored in x_seg.b2nd, where the segmentation of x lies
    reserved = [case for case in cases if case.endswith("_seg")]
    if reserved:
        raise UserError(f"{folder} contains case names that end with '_seg' ({listing(reserved)}): rename the files")


def check_description(raw_dataset_folder: str, dataset_json: dict) -> None:
    """Refuse a ``dataset.json`` that does not say how images are named.

    Raises:
        UserError: names the key that is missing, and those that are there.
    """
    for keys in (("file_ending",), ("channel_names", "modality")):
        if not any(key in dataset_json for key in keys):
            # the content may be that of the copy in the preprocessed folder
            raise UserError(
                f"{basename(normpath(raw_dataset_folder))}/dataset.json has no '{keys[0]}', only "
                f"{listing(dataset_json, at_most=9) or 'nothing'}: correct it in nnUNet_raw and, if it is there too, "
                "in nnUNet_preprocessed"
            )


def channel_names(dataset_json: dict) -> dict:
    """The channels of a dataset; 'modality' is the key that older files use."""
    return dataset_json["modality"] if "modality" in dataset_json else dataset_json["channel_names"]
