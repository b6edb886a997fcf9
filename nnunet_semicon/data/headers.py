"""What the headers of images say: texts that may name a category, and the direction in which slices are stored."""

from collections.abc import Mapping
from dataclasses import dataclass

import SimpleITK
from tqdm import tqdm

FIELDS = ("descrip", "intent_name", "aux_file", "db_name")  # texts in a NIfTI header that may hold a category


@dataclass(frozen=True)
class Header:
    """What is read of an image's header: its text fields, and ``GetDirection()`` (row-major cosines, LPS)."""

    fields: dict[str, str]
    direction: tuple[float, ...]


def read_headers(files: Mapping[str, str]) -> dict[str, Header]:
    """Return case -> header of the NIfTI files among ``files`` (case -> path); one that cannot be read is left out."""
    nifti = {case: path for case, path in files.items() if path.endswith((".nii", ".nii.gz"))}
    headers = {}
    for case, path in tqdm(nifti.items(), desc="image headers", unit="file", leave=False, delay=1):
        reader = SimpleITK.ImageFileReader()
        reader.SetFileName(path)
        try:
            reader.ReadImageInformation()
        except RuntimeError:  # preprocessing names such a file; the table does not depend on it
            continue
        fields = {name: reader.GetMetaData(name) if reader.HasMetaDataKey(name) else "" for name in FIELDS}
        headers[case] = Header(fields, reader.GetDirection())
    return headers
