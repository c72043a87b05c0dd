"""Generate the small data set "shapes", crop COCO's objects into class folders, or check a data set before training.

A check finds and reads files with the code that training uses, and lists all faults. "ok" means that the data set
trains and evaluates, but for pixels that the line says were not read.

Examples:
    python tools/prepare_data.py shapes data/shapes --train 400 --val 60
    python tools/prepare_data.py classes data/shapes/coco data/shapes_classes
    python tools/prepare_data.py check coco data/coco
    python tools/prepare_data.py check coco instances_train.json --images data/nuts/images
    python tools/prepare_data.py check ade data/ade/ADEChallengeData2016 --num-classes 150
    python tools/prepare_data.py check images data/imagenet/train
    python tools/prepare_data.py check classes data/imagenet
    python tools/prepare_data.py check imagenet data/robustness --sets v2 sketch

Exit status: 0 success, 1 a check found errors, 2 wrong arguments.
"""

import argparse
import sys
from pathlib import Path

from arm_images.errors import DataError
from arm_toolkit.datasets.check import check_coco, compare_categories
from arm_toolkit.datasets.check_ade import ADE_SPLITS, check_ade
from arm_toolkit.datasets.check_class_folders import check_class_folders, check_imagenet_set
from arm_toolkit.datasets.check_images import check_images
from arm_toolkit.datasets.check_report import Report
from arm_toolkit.errors import run_tool


def main() -> None:
    args = parse_args()
    args.progress = sys.stderr.isatty()
    if args.command == "shapes":
        make_shapes(args)
    elif args.command == "classes":
        make_classes(args)
    else:
        checks = {"coco": coco, "ade": ade, "images": images, "classes": class_folders, "imagenet": imagenet}
        reports = checks[args.kind](args)
        print("\n".join(str(report) for report in reports))
        sys.exit(0 if all(report.ok for report in reports) else 1)


def make_shapes(args: argparse.Namespace) -> None:
    from arm_toolkit.datasets.shapes import write_shapes

    sizes = dict(train=args.train, val=args.val, size=args.size, seed=args.seed)
    written = write_shapes(args.out, **sizes, force=args.force, progress=args.progress)
    described = ", ".join(f"{name} {value}" for name, value in sizes.items())
    print(f"{args.out}: {'written' if written else 'already there'} ({described})")


def make_classes(args: argparse.Namespace) -> None:
    from arm_toolkit.datasets.crop_classes import write_class_folders

    counts = write_class_folders(args.coco, args.out)
    print(f"{args.out}: written ({', '.join(f'{split} {count}' for split, count in counts.items())})")


def coco(args: argparse.Namespace) -> list[Report]:
    options = dict(classes=args.classes, decode=args.decode, progress=args.progress, masks=not args.boxes)
    if args.root.is_dir():
        if args.images:
            raise DataError(f"--images {args.images} is for a single annotation file, but {args.root} is a folder")
        reports = [
            check_coco(args.root / f"annotations/instances_{split}.json", args.root / split, **options)
            for split in args.splits
        ]
        if not args.classes:
            compare_categories(reports)
        return reports
    if args.root.is_file() and not args.images:
        raise DataError(f"{args.root} is a file; give the folder of its images with --images FOLDER")
    if not args.root.is_file():
        raise DataError(f"{args.root} does not exist; give a COCO folder or an instances_*.json")
    return [check_coco(args.root, args.images, **options)]


def ade(args: argparse.Namespace) -> list[Report]:
    if not args.root.is_dir():
        raise DataError(f"{args.root} is not a folder; give the one with images/ and annotations/")
    if not 1 <= args.num_classes <= 254:
        raise DataError(f"--num-classes is {args.num_classes}; 8-bit labels allow 1 to 254")
    names = dict(img_suffix=args.img_suffix, seg_map_suffix=args.seg_map_suffix)
    if args.list and (len(args.splits) > 1 or not args.list.is_file()):
        raise DataError(
            f"--list {args.list}: give an existing file, and the one split that it belongs to with --splits"
        )
    options = dict(splits=args.splits, decode=args.decode, progress=args.progress, listed=args.list, **names)
    return [check_ade(args.root, args.num_classes, reduce_zero_label=not args.no_reduce_zero_label, **options)]


def images(args: argparse.Namespace) -> list[Report]:
    if not args.path.exists():
        raise DataError(f"{args.path} does not exist; give a folder of images or a list of their paths")
    return [check_images(args.path, args.root, not args.no_decode, args.progress)]


def class_folders(args: argparse.Namespace) -> list[Report]:
    if not args.root.is_dir():
        raise DataError(f"{args.root} is not a folder; give the one with {'/ and '.join(args.splits)}/")
    return check_class_folders(args.root, args.splits, args.decode, args.progress)


def imagenet(args: argparse.Namespace) -> list[Report]:
    if not args.root.is_dir():
        raise DataError(f"{args.root} is not a folder; give the one that contains the sets")
    return [check_imagenet_set(name, args.root, args.val, args.decode, args.progress) for name in args.sets]


def parse_args() -> argparse.Namespace:
    style = dict(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser = argparse.ArgumentParser(description=__doc__, **style)
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser(
        "shapes",
        help="generate the data set shapes",
        epilog="Example: python tools/prepare_data.py shapes data/shapes --train 400 --val 60",
    )
    command.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    command.add_argument("--train", type=int, default=400, help="training images (400)")
    command.add_argument("--val", type=int, default=60, help="validation images (60)")
    command.add_argument("--size", type=int, default=192, help="side of an image in pixels (192)")
    command.add_argument("--seed", type=int, default=0, help="random seed (0)")
    command.add_argument("--force", action="store_true", help="replace a data set in OUT that has other parameters")

    command = commands.add_parser(
        "classes",
        help="crop the objects of a COCO data set into class folders",
        epilog="Example: python tools/prepare_data.py classes data/shapes/coco data/shapes_classes",
    )
    command.add_argument("coco", metavar="COCO", type=Path, help="folder with annotations/, train2017/, val2017/")
    command.add_argument("out", metavar="OUT", type=Path, help="folder to write")

    check = commands.add_parser("check", help="check a data set")
    kinds = check.add_subparsers(dest="kind", required=True)
    decode = dict(action="store_true", help="read the pixels of every image (slow); otherwise headers")

    kind = kinds.add_parser(
        "coco", help="COCO instances", epilog="Example: python tools/prepare_data.py check coco data/coco"
    )
    kind.add_argument("root", metavar="ROOT", type=Path, help="COCO folder, or one annotation file")
    kind.add_argument("--images", type=Path, help="folder of the images, if ROOT is a file")
    kind.add_argument("--splits", nargs="+", default=["train2017", "val2017"], help="splits (train2017 val2017)")
    kind.add_argument("--classes", nargs="+", help="category names that the file must contain")
    kind.add_argument("--boxes", action="store_true", help="for training boxes alone: objects need no segmentation")
    kind.add_argument("--decode", **decode)

    kind = kinds.add_parser(
        "ade",
        help="label maps in ADE20K layout",
        epilog="Example: python tools/prepare_data.py check ade data/ade/ADEChallengeData2016 --num-classes 150",
    )
    kind.add_argument("root", metavar="ROOT", type=Path, help="folder with images/ and annotations/")
    kind.add_argument("--num-classes", type=int, default=150, help="number of classes, without the ignored 0 (150)")
    kind.add_argument("--splits", nargs="+", default=list(ADE_SPLITS), help=f"splits ({' '.join(ADE_SPLITS)})")
    kind.add_argument("--img-suffix", default=".jpg", help="end of the images' names (.jpg)")
    kind.add_argument(
        "--seg-map-suffix", default=".png", help="end of the label maps' names, as in the data set (.png)"
    )
    kind.add_argument("--list", type=Path, help="names of the images to use, as the data set's ann_file; for one split")
    kind.add_argument(
        "--no-reduce-zero-label",
        action="store_true",
        help="class k is stored as k, as with reduce_zero_label=False; otherwise as k + 1, and 0 is ignored",
    )
    kind.add_argument("--decode", **decode)

    kind = kinds.add_parser(
        "images",
        help="images for pretraining",
        epilog="Example: python tools/prepare_data.py check images data/imagenet/train",
    )
    kind.add_argument(
        "path",
        metavar="PATH",
        type=Path,
        help="folder of images or archives, .tar archive, list with one path per line",
    )
    kind.add_argument("--root", type=Path, help="folder that the lines of a list are relative to (the list's own)")
    kind.add_argument("--no-decode", action="store_true", help="read headers only (fast)")

    kind = kinds.add_parser(
        "classes",
        help="images for classification, in one folder per class",
        epilog="Example: python tools/prepare_data.py check classes data/imagenet",
    )
    kind.add_argument("root", metavar="ROOT", type=Path, help="folder with SPLIT/CLASS/ for each split")
    kind.add_argument(
        "--splits", nargs="+", default=["train", "val"], help="splits; the first defines the classes (train val)"
    )
    kind.add_argument("--decode", **decode)

    sets = ("val", "v2", "real", "a", "r", "sketch")
    kind = kinds.add_parser(
        "imagenet",
        help="ImageNet's sets for tools/robustness.py",
        epilog="Example: python tools/prepare_data.py check imagenet data/robustness --sets v2 sketch",
    )
    kind.add_argument("root", metavar="ROOT", type=Path, help="folder that contains the sets")
    kind.add_argument("--sets", nargs="+", choices=sets, default=sets[1:], metavar="SET", help=", ".join(sets))
    kind.add_argument("--val", type=Path, help="ImageNet validation images (default: ROOT/val)")
    kind.add_argument("--decode", **decode)
    return parser.parse_args()


if __name__ == "__main__":
    run_tool(main)
