"""Shows that position, patient and phase all train: SP-Con's pre-training on ACDC at half resolution, on the CPU.

``nnUNetv2_plan_experiment`` with a spacing of 5 x 2 x 2 mm, ``nnUNetv2_preprocess``, ``semicon configure``,
``nnUNetv2_train``; then one JSON file with the curves of every meta-label. All of them have the weight 1, and the
learning rate is five times the default, so that a short run shows each. ``scripts/make_results.py`` makes the table.
The dataset must have a fingerprint (``nnUNetv2_extract_fingerprint -d 027``), and its fold must list unlabeled cases.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from provenance import REPOSITORY, provenance, write_json
from run_hippocampus import curves, run, show

from nnunet_semicon.errors import UserError

PLANS = "nnUNetPlansHalf"
CONFIGURATION = "2d_labels"
TRAINER = "nnUNetTrainerSPConPretrain"
FILE = "acdc_half_labels.json"
LENGTH = ("batch_size=24", "num_epochs=8", "num_iterations_per_epoch=100", "num_val_iterations_per_epoch=1", "seed=0")
SETTINGS = (*LENGTH, "learning_rate=0.001")
WEIGHTS = ("lambda.position=1", "lambda.patient=1", "lambda.phase=1")


def commands(dataset: str, fold: int, device: str) -> list[list[str]]:
    """Return every command of the run; planning and preprocessing are done again only where they are missing."""
    plan = ["nnUNetv2_plan_experiment", "-d", dataset, "-overwrite_target_spacing", "5", "2", "2"]
    preprocess = ["nnUNetv2_preprocess", "-d", dataset, "-plans_name", PLANS, "-c", "2d", "-np", "2"]
    configure = ["semicon", "configure", "-d", dataset, "-p", PLANS, "-c", "2d", "--name", CONFIGURATION, "--force"]
    train = ["nnUNetv2_train", dataset, CONFIGURATION, str(fold), "-tr", TRAINER, "-p", PLANS, "-device", device]
    return [[*plan, "-overwrite_plans_name", PLANS], preprocess, [*configure, "--set", *SETTINGS, *WEIGHTS], train]


def execute(args: argparse.Namespace) -> None:
    """Run everything and write the JSON file."""
    from nnunet_semicon.workspace import dataset_name, preprocessed_folder, results_folder

    name = dataset_name(args.d)
    preprocessed = Path(preprocessed_folder()) / name
    if not (preprocessed / "dataset_fingerprint.json").is_file():
        raise UserError(f"{preprocessed} has no fingerprint: run `nnUNetv2_extract_fingerprint -d {args.d}` first")
    origin = provenance(args.device)
    plan, preprocess, configure, train = commands(args.d, args.fold, args.device)
    if not (preprocessed / f"{PLANS}.json").is_file():
        run(plan)
    if not (preprocessed / f"{PLANS}_2d").is_dir():
        run(preprocess)
    run(configure)
    run(train)
    folder = Path(results_folder()) / name / f"{TRAINER}__{PLANS}__{CONFIGURATION}" / f"fold_{args.fold}"
    config = json.loads((folder / "semicon_config.json").read_text())
    result = {"dataset": name, "fold": args.fold, "epochs": curves(folder), **origin, "semicon_config": config}
    write_json(result, args.out)
    print(f"wrote {args.out}; now `python scripts/make_results.py` brings docs/results.md up to date")


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0, or 1 after one sentence that says what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", default="027", metavar="DATASET", help="dataset id or name (default: %(default)s)")
    parser.add_argument("--fold", type=int, default=0, help="fold with unlabeled cases (default: %(default)s)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: %(default)s")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run nothing")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "results" / FILE)
    args = parser.parse_args(argv)
    if args.dry_run:
        for words in commands(args.d, args.fold, args.device):
            show(words)
        return 0
    try:
        execute(args)
    except UserError as error:
        print(f"run_acdc_labels: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
