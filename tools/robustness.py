"""Top-1 accuracy of a classifier on ImageNet-V2, -ReaL, -A, -R and -Sketch, and on ImageNet's validation set.

CHECKPOINT is of any kind that holds a classifier of the 1000 ImageNet classes. For the moving average in a file of the
authors, first: python tools/convert_checkpoint.py SOURCE TARGET --to classifier --ema

ROOT holds the sets as they are published:
  v2       imagenetv2-matched-frequency-format-val/{0..999}/*
  real     real.json, with the ImageNet validation images in val/ (or --val), flat or in class folders; a prediction is
           right if it is one of an image's labels, and images without labels do not count
  a        imagenet-a/{wnid}/*, predicted among its 200 classes
  r        imagenet-r/{wnid}/*, predicted among its 200 classes
  sketch   sketch/{wnid}/* or imagenet-sketch/{wnid}/*
  val      val/{wnid}/* (or --val), only if asked for

Examples:
  all robustness sets that are there, the table as Markdown:
    python tools/robustness.py checkpoints/arm_b_in1k.pth --model arm_base_patch16_224 --data data/robustness
  two of them, with validation images elsewhere, the table in a file too:
    python tools/robustness.py checkpoints/arm_b_in1k.pth --model arm_base_patch16_224 --data data/robustness \\
      --sets real val --val data/imagenet/val --out work_dirs/robustness.json
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch

from arm_backbone.timm_models import default_cfgs
from arm_images.errors import DataError
from arm_toolkit.datasets.imagenet_sets import ROBUSTNESS, TITLES
from arm_toolkit.errors import ConfigError, run_tool
from arm_toolkit.evaluation.robustness import load_model, markdown, open_sets, top1


def main() -> None:
    args = parse_args()
    check(args)
    model, accounting = load_model(args)
    sets = open_sets(args, model)
    print(f"{args.checkpoint}:\n{accounting}", file=sys.stderr)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(args.out.parent, os.W_OK):
            raise ConfigError(f"--out {args.out}: its folder cannot be written to; give another")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).eval()
    table = {}
    for name, dataset in sets.items():
        if dataset is None:
            table[name] = None
            continue
        accuracy = top1(dataset, model, args.batch_size, args.workers, device, progress=True)
        table[name] = dict(images=len(dataset), top1=accuracy)
    print(markdown(table))
    if args.out:
        settings = dict(
            checkpoint=args.checkpoint,
            model=args.model,
            global_pool=args.global_pool,
            cls_token=args.cls_token,
            keep_ratio=args.keep_ratio,
        )
        write(args.out, json.dumps({**settings, "sets": table}, indent=2) + "\n")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="classifier, .pth or .safetensors")
    parser.add_argument("--model", required=True, choices=default_cfgs, metavar="NAME", help=", ".join(default_cfgs))
    parser.add_argument("--data", required=True, type=Path, metavar="ROOT", help="folder of the sets")
    parser.add_argument(
        "--sets",
        nargs="+",
        choices=TITLES,
        metavar="SET",
        help=f"some of {', '.join(TITLES)}; default: those of {', '.join(ROBUSTNESS)} that are there",
    )
    parser.add_argument("--val", type=Path, metavar="FOLDER", help="ImageNet validation images (ROOT/val)")
    parser.add_argument(
        "--keep-ratio",
        action="store_true",
        help="resize the short side, instead of squashing the image to a square as the reference code does",
    )
    parser.add_argument("--global-pool", choices=("avg", "token"), default="avg", help="pooling of the model (avg)")
    parser.add_argument(
        "--cls-token", choices=("middle", "tail", "none"), default="middle", help="place of its class token (middle)"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="images at once (64)")
    parser.add_argument("--workers", type=int, default=4, help="processes that read images; 0: none (4)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table as JSON")
    return parser.parse_args()


def check(args: argparse.Namespace) -> None:
    """What the command line alone tells."""
    if args.batch_size < 1:
        raise ConfigError(f"--batch-size {args.batch_size}: give at least 1")
    if args.workers < 0:
        raise ConfigError(f"--workers {args.workers}: give 0 or more")
    if not args.data.is_dir():
        raise DataError(f"--data {args.data} is no folder; give the one that holds the sets (see --help)")
    if args.val and not args.val.is_dir():
        raise DataError(f"--val {args.val} is no folder; give the one of the ImageNet validation images")
    if args.val and args.sets and not {"val", "real"} & set(args.sets):
        raise ConfigError(f"--val {args.val} is for the sets real and val; leave it, or ask for one of them")
    if args.global_pool == "token" and args.cls_token == "none":
        raise ConfigError("--global-pool token: --cls-token none leaves no class token; give middle or tail")
    if args.out and args.out.is_dir():
        raise ConfigError(f"--out {args.out} is a folder; give a file in it")


def write(path: Path, text: str) -> None:
    """Write beside the target first: no half file remains."""
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(text)
    os.replace(partial, path)


if __name__ == "__main__":
    run_tool(main)
