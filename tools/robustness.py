"""Measure a classifier's top-1 accuracy on ImageNet-V2, -ReaL, -A, -R and -Sketch, and on ImageNet's validation set.

CHECKPOINT is a file of any kind that contains a classifier of the 1000 ImageNet classes. To evaluate the moving average
in one of the authors' files, convert it first:
    python tools/convert_checkpoint.py SOURCE TARGET --to classifier --ema

ROOT contains the sets in their public layouts:
  v2       imagenetv2-matched-frequency-format-val/{0..999}/*
  real     real.json, and the ImageNet validation images in val/ (or --val), flat or in class folders; a prediction is
           correct if it is one of an image's labels; images without labels do not count
  a        imagenet-a/{wnid}/*, predicted among its 200 classes
  r        imagenet-r/{wnid}/*, predicted among its 200 classes
  sketch   sketch/{wnid}/* or imagenet-sketch/{wnid}/*
  val      val/{wnid}/* (or --val), only if --sets names it

Examples:
  evaluate on all robustness sets in ROOT and print a Markdown table:
    python tools/robustness.py checkpoints/arm_b_in1k.pth --model arm_base_patch16_224 --data data/robustness
  evaluate on two sets, with the validation images elsewhere, and also write the results to a JSON file:
    python tools/robustness.py checkpoints/arm_b_in1k.pth --model arm_base_patch16_224 --data data/robustness \\
      --sets real val --val data/imagenet/val --out work_dirs/robustness.json
"""

import argparse
import json
import sys
from pathlib import Path

from arm_images.errors import DataError
from arm_toolkit.errors import ConfigError, run_tool


def main() -> None:
    args = parse_args()
    check(args)
    # imported here: --help and wrong arguments need no torch
    import torch

    from arm_backbone.checkpoint.writing import check_writable, replacing
    from arm_toolkit.engine.environment import check_environment
    from arm_toolkit.evaluation.robustness import eval_transform, load_classifier, open_sets, results_table, top1
    from arm_toolkit.machine import compute_faster

    check_environment()
    model, accounting = load_classifier(args.checkpoint, args.model, args.global_pool, args.cls_token)
    sets = open_sets(args.sets, args.data, eval_transform(model, args.keep_ratio), args.val)
    print(f"{args.checkpoint}:\n{accounting}", file=sys.stderr)
    if args.out:
        check_writable(args.out)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        compute_faster()
    model = model.to(device).eval()
    results: dict[str, dict | None] = {}
    for name, dataset in sets.items():
        results[name] = None
        if dataset is not None:
            accuracy = top1(dataset, model, args.batch_size, args.workers, device, progress=True)
            results[name] = dict(images=len(dataset), top1=accuracy)
    print(results_table(results))
    if args.out:
        settings = {
            key: getattr(args, key) for key in ("checkpoint", "model", "global_pool", "cls_token", "keep_ratio")
        }
        with replacing(args.out) as partial:
            partial.write_text(json.dumps({**settings, "sets": results}, indent=2) + "\n")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="classifier, .pth or .safetensors")
    parser.add_argument("--model", required=True, metavar="NAME", help="timm name, e.g. arm_base_patch16_224")
    parser.add_argument("--data", required=True, type=Path, metavar="ROOT", help="folder that contains the sets")
    parser.add_argument(
        "--sets",
        nargs="+",
        choices=("val", "v2", "real", "a", "r", "sketch"),
        metavar="SET",
        help="val, v2, real, a, r, sketch (default: those in ROOT, except val)",
    )
    parser.add_argument("--val", type=Path, metavar="FOLDER", help="ImageNet validation images (default: ROOT/val)")
    parser.add_argument(
        "--keep-ratio",
        action="store_true",
        help="resize the short side, as for Vim and VMamba by default; for ARM the image is squashed to a square by "
        "default, as in the reference code",
    )
    parser.add_argument("--global-pool", choices=("avg", "token"), help="the model's pooling (ARM: avg, Vim: token)")
    parser.add_argument(
        "--cls-token", choices=("middle", "tail", "none"), help="position of its class token (ARM, Vim: middle)"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="images per batch (64)")
    parser.add_argument("--workers", type=int, default=4, help="processes that load images; 0 loads in this one (4)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the results to a JSON file")
    return parser.parse_args()


def check(args: argparse.Namespace) -> None:
    """Refuse invalid arguments before anything is loaded."""
    if args.batch_size < 1:
        raise ConfigError(f"--batch-size {args.batch_size}: give at least 1")
    if args.workers < 0:
        raise ConfigError(f"--workers {args.workers}: give 0 or more")
    if not args.data.is_dir():
        raise DataError(f"--data {args.data} is not a folder; give the one that contains the sets (see --help)")
    if args.val and not args.val.is_dir():
        raise DataError(f"--val {args.val} is not a folder; give the folder of the ImageNet validation images")
    if args.val and args.sets and not {"val", "real"} & set(args.sets):
        raise ConfigError(f"--val {args.val} is used by the sets real and val only; omit it, or add one to --sets")
    if args.global_pool == "token" and args.cls_token == "none":
        raise ConfigError("--global-pool token needs a class token, but --cls-token is none; give middle or tail")
    if args.out and args.out.is_dir():
        raise ConfigError(f"--out {args.out} is a folder; give a file in it")


if __name__ == "__main__":
    run_tool(main)
