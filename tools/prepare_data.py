"""Make the small generated data set "shapes", cut class folders from COCO, or check a data set before training.

Examples:
    python tools/prepare_data.py shapes data/shapes --train 400 --val 60
    python tools/prepare_data.py classes data/shapes/coco data/shapes_classes
    python tools/prepare_data.py check coco data/coco
    python tools/prepare_data.py check coco instances_train.json --images data/nuts/images
    python tools/prepare_data.py check ade data/ade/ADEChallengeData2016 --num-classes 150
    python tools/prepare_data.py check images data/imagenet/train

Exit status: 0 fine, 1 a check found errors, 2 bad arguments.
"""

import argparse
import sys
from pathlib import Path

from arm_images.errors import DataError
from arm_toolkit.datasets.check import ADE_SPLITS, Report, check_ade, check_coco, check_images
from arm_toolkit.datasets.crop_classes import write_class_folders
from arm_toolkit.datasets.shapes import write_shapes
from arm_toolkit.errors import run_tool


def main() -> None:
    args = parse_args()
    args.progress = sys.stderr.isatty()
    if args.command == "shapes":
        make_shapes(args)
        return
    if args.command == "classes":
        counts = write_class_folders(args.coco, args.out)
        print(f"{args.out}: written ({', '.join(f'{split} {count}' for split, count in counts.items())})")
        return
    reports = {"coco": coco, "ade": ade, "images": images}[args.kind](args)
    print("\n".join(str(report) for report in reports))
    sys.exit(0 if all(report.ok for report in reports) else 1)


def make_shapes(args: argparse.Namespace) -> None:
    sizes = dict(train=args.train, val=args.val, size=args.size, seed=args.seed)
    written = write_shapes(args.out, **sizes, force=args.force, progress=args.progress)
    described = ", ".join(f"{name} {value}" for name, value in sizes.items())
    print(f"{args.out}: {'written' if written else 'already there'} ({described})")


def coco(args: argparse.Namespace) -> list[Report]:
    options = dict(classes=args.classes, decode=args.decode, progress=args.progress)
    if args.root.is_dir():
        if args.images:
            raise DataError(f"--images {args.images} goes with a file; {args.root} is a folder")
        return [
            check_coco(args.root / f"annotations/instances_{split}.json", args.root / split, **options)
            for split in args.splits
        ]
    if args.root.is_file() and not args.images:
        raise DataError(f"{args.root} is a file; say where its pictures are with --images FOLDER")
    if not args.root.is_file():
        raise DataError(f"{args.root} does not exist; give a COCO folder or an instances_*.json")
    return [check_coco(args.root, args.images, **options)]


def ade(args: argparse.Namespace) -> list[Report]:
    if not args.root.is_dir():
        raise DataError(f"{args.root} is not a folder; give the one with images/ and annotations/")
    if not 1 <= args.num_classes <= 254:
        raise DataError(f"--num-classes is {args.num_classes}; 8-bit labels allow 1 to 254")
    return [check_ade(args.root, args.num_classes, args.splits, args.decode, args.progress)]


def images(args: argparse.Namespace) -> list[Report]:
    if not args.path.exists():
        raise DataError(f"{args.path} does not exist; give a folder or a list of pictures")
    return [check_images(args.path, args.root, not args.no_decode, args.progress)]


def parse_args() -> argparse.Namespace:
    style = dict(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser = argparse.ArgumentParser(description=__doc__, **style)
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("shapes", help="make the generated data set")
    command.add_argument("out", metavar="OUT", type=Path, help="folder to make")
    command.add_argument("--train", type=int, default=400, help="training pictures (400)")
    command.add_argument("--val", type=int, default=60, help="validation pictures (60)")
    command.add_argument("--size", type=int, default=192, help="side of a picture in pixels (192)")
    command.add_argument("--seed", type=int, default=0, help="other seed, other pictures (0)")
    command.add_argument("--force", action="store_true", help="replace other shapes in OUT")

    command = commands.add_parser("classes", help="cut the objects of a COCO data set into class folders")
    command.add_argument("coco", metavar="COCO", type=Path, help="folder with annotations/, train2017/, val2017/")
    command.add_argument("out", metavar="OUT", type=Path, help="folder to make")

    check = commands.add_parser("check", help="check a data set")
    kinds = check.add_subparsers(dest="kind", required=True)
    decode = dict(action="store_true", help="read every picture too (slow)")

    kind = kinds.add_parser("coco", help="instances in COCO format")
    kind.add_argument("root", metavar="ROOT", type=Path, help="COCO folder, or one annotation file")
    kind.add_argument("--images", type=Path, help="folder of the pictures, if ROOT is a file")
    kind.add_argument("--splits", nargs="+", default=["train2017", "val2017"], help="both")
    kind.add_argument("--classes", nargs="+", help="names that must be among the categories")
    kind.add_argument("--decode", **decode)

    kind = kinds.add_parser("ade", help="label maps in ADE20K layout")
    kind.add_argument("root", metavar="ROOT", type=Path, help="has images/ and annotations/")
    kind.add_argument("--num-classes", type=int, default=150, help="without the ignored 0 (150)")
    kind.add_argument("--splits", nargs="+", default=list(ADE_SPLITS), help="both")
    kind.add_argument("--decode", **decode)

    kind = kinds.add_parser("images", help="pictures for pretraining")
    kind.add_argument("path", metavar="PATH", type=Path, help="folder, or list with a path per line")
    kind.add_argument("--root", type=Path, help="what a list is relative to (its own folder)")
    kind.add_argument("--no-decode", action="store_true", help="read headers only (fast)")
    return parser.parse_args()


if __name__ == "__main__":
    run_tool(main)
