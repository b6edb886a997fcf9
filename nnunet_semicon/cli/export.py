"""``semicon export``: a trained model for a machine that has nnU-Net but not this package."""

import argparse

EXAMPLE = """example:
  semicon export -d 027 -c 2d -tr nnUNetTrainerSemicon -f 0 -o EXPORT
  nnUNet_results=EXPORT nnUNetv2_predict -d 027 -c 2d -f 0 -i IN -o OUT           # needs no nnunet_semicon
  nnUNet_results=EXPORT nnUNetv2_export_model_to_zip -d 027 -c 2d -f 0 -o model.zip
  semicon export -d 027 -c 2d -tr nnUNetTrainerCPS -f 0 -o SECOND --network second      # to predict with both"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = EXAMPLE
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name, as for nnU-Net")
    parser.add_argument("-c", required=True, metavar="CONFIGURATION", help="e.g. 2d")
    parser.add_argument("-tr", required=True, metavar="TRAINER", help="the trainer it was trained with")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: %(default)s)")
    parser.add_argument("-f", nargs="+", default=["0"], metavar="FOLD", help="folds (default: 0)")
    parser.add_argument("-o", required=True, metavar="FOLDER", help="new or empty folder, used as nnUNet_results there")
    parser.add_argument(
        "--network",
        "--weights",
        choices=("student", "teacher", "second"),
        default="student",
        help="teacher: the moving average; second: the network beside the student (default: %(default)s)",
    )
    parser.add_argument("--checkpoint", default="checkpoint_final.pth", help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Write the copy and print how to predict with it."""
    from nnunet_semicon.inference.export import Model, export

    copy = export(Model(args.d, args.tr, args.p, args.c), args.f, args.checkpoint, args.network, args.o)
    folds = " ".join(args.f)
    package, model = "without", f"-d {args.d} -c {args.c} -p {args.p}"
    if copy.needs_us:
        package, model = "with", f"{model} -tr {copy.trainer}"
    network = "second network" if args.network == "second" else args.network
    which = f"fold{'s' if len(args.f) > 1 else ''} {folds}"
    print(f"{network} of {args.tr}, {which}, exported to {copy.folder}. Predict {package} this package:")
    print(f"  nnUNet_results={args.o} nnUNetv2_predict {model} -f {folds} -i IN -o OUT")
    return 0
