"""Predict images and videos with a trained detector, segmentor or classifier.

Examples:
    python tools/predict.py work_dirs/mine/iter_400.pth IMAGES --out predicted
    python tools/predict.py seg_configs/upernet_arm_b.py --checkpoint iter_160000.pth "photos/*.jpg" --out predicted
    python tools/predict.py hf://OWNER/NAME film.mp4 --out predicted --score-thr 0.5
"""

import argparse
import sys
from pathlib import Path

from arm_toolkit.engine.arguments import add_dtype
from arm_toolkit.errors import ConfigError, run_tool
from arm_toolkit.inference.inputs import find_inputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", help="published folder, hf://OWNER/NAME, checkpoint of a training, or configuration with --checkpoint"
    )
    parser.add_argument(
        "images", nargs="+", help='images, folders, patterns ("*.jpg"), lists (.txt, one path per line) or videos'
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--checkpoint", help="weights, if the model is a configuration")
    parser.add_argument("--annotations", metavar="JSON", help="detection: results.json gets the ids of this COCO file")
    parser.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="images that go through the model at once (%(default)s)"
    )
    parser.add_argument(
        "--score-thr",
        type=float,
        metavar="X",
        help="detection: draw objects with at least this score (0.3); results.json holds all that the model returns",
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="classification: classes per image (5)")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation (not for classification)")
    parser.add_argument(
        "--window", type=int, metavar="N", help="segmentation: predict in windows of N pixels that overlap by a third"
    )
    parser.add_argument("--no-drawings", action="store_true", help="write results only; videos are drawn all the same")
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    add_dtype(parser)
    args = parser.parse_args()
    for option, number in (("--batch-size", args.batch_size), ("--top-k", args.top_k), ("--window", args.window)):
        if number is not None and number < 1:
            raise ConfigError(f"{option} {number}: give at least 1")
    if args.score_thr is not None and not 0 <= args.score_thr <= 1:
        raise ConfigError(f"--score-thr {args.score_thr}: give a number from 0 to 1")
    inputs = find_inputs(args.images, args.out)

    # imported here: --help and wrong arguments need no torch
    from arm_toolkit.engine.environment import check_environment
    from arm_toolkit.inference import load
    from arm_toolkit.inference.run import Options, predict_files

    check_environment()
    predictor = load(args.model, args.checkpoint, args.device, tta=args.tta, window=args.window, dtype=args.dtype)
    options = Options(
        args.out, args.annotations, args.batch_size, args.score_thr, args.top_k, drawings=not args.no_drawings
    )
    done = predict_files(predictor, inputs, options)
    print(done.describe(args.out))
    for problem in done.problems:
        print(f"skipped: {problem}", file=sys.stderr)
    if done.problems:
        sys.exit(1)


if __name__ == "__main__":
    run_tool(main)
