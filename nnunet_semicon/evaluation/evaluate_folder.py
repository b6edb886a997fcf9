"""The evaluation of a folder of predictions: all its cases measured, in threads, and the files that keep the result."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_semicon import __version__
from nnunet_semicon.errors import UserError, listing
from nnunet_semicon.evaluation.evaluate import Pair, Protocol, UnreadableError, evaluate_case, summarize
from nnunet_semicon.evaluation.folders import Source, entry, pairs, read_json
from nnunet_semicon.evaluation.tables import to_csv
from nnunet_semicon.files import explain_unwritable, write_texts


def evaluate_folder(
    source: Source, tolerance: float | None, all_references: bool, threads: int
) -> tuple[dict[str, Any], list[str]]:
    """Return the content of ``evaluation.json``, and notes on what is not in it.

    Args:
        source: predictions and their references.
        tolerance: of the NSD, in mm; None: no NSD.
        all_references: refuse a reference without a prediction.
        threads: that measure cases side by side, at least 1.

    Raises:
        UserError: cases do not match, a file cannot be read, or nothing can be read yet.
    """
    cases = list(pairs(source, entry(source.dataset, "file_ending"), all_references))
    protocol = Protocol.from_dataset(read_json(source.dataset), cases[0].reference, tolerance)
    results = dict(
        zip([pair.case for pair in cases], _measured(cases, protocol, threads, source.complete), strict=True)
    )
    unread = sorted(case for case, result in results.items() if result is None)
    if len(unread) == len(cases):
        raise UserError(f"{source.predictions}: nothing can be read yet; try again when the validation is further")
    notes = []
    if not source.complete:
        left_out = f"; not readable yet: {listing(unread)}" if unread else ""
        notes.append(f"the validation of this fold is not finished: {len(cases) - len(unread)} cases so far{left_out}")
    measured = [result for result in results.values() if result]
    return summarize(measured, protocol, __version__, source.complete), notes


def _measured(cases: list[Pair], protocol: Protocol, threads: int, complete: bool) -> Iterator[dict[str, Any] | None]:
    """Yield one result per case, in order; None for a file that nnU-Net is still writing."""

    def result(pair: Pair) -> dict[str, Any] | None:
        try:
            return evaluate_case(pair, protocol)
        except UnreadableError:
            if complete:
                raise
            return None

    with ThreadPoolExecutor(max(1, threads)) as pool:
        futures = [pool.submit(result, pair) for pair in cases]
        try:
            for future in tqdm(futures, desc="evaluating", unit="case", disable=None):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def write_evaluation(content: dict[str, Any], file: Path) -> None:
    """Write the JSON and the CSV beside it; a reader never meets half of one.

    Raises:
        UserError: one of them cannot be written; then both stay as they were.
    """
    with explain_unwritable(file, "choose another file with --out"):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_texts({file: json.dumps(content, indent=1), file.with_suffix(".csv"): to_csv(content)})
