"""Write a configuration that trains on your own annotated images: it looks at the folder and says what it found.

Accepted are COCO files, Roboflow's COCO exports, YOLO (data.yaml), images beside label maps (8 bits, palettes, or
colours with a legend), and class folders; docs/data.md shows each. Without a validation split, one is made. The data is
not changed: what training cannot read as it is, is written to a folder beside the configuration.

Examples:
    python tools/new_config.py data/nuts --out nuts.py && python tools/train.py nuts.py
    python tools/new_config.py data/streets --out streets.py --classes data/streets/colours.txt

Exit status: 0 success, 2 the data or an argument cannot be used.
"""

import argparse
import sys
from pathlib import Path

from arm_toolkit.errors import run_tool

MODELS = ("arm_tiny", "arm_small", "arm_base", "arm_large", "arm_huge")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", type=Path, help="folder of annotated images, COCO file, or data.yaml")
    parser.add_argument("--out", metavar="CONFIG.py", type=Path, required=True, help="configuration to write")
    parser.add_argument(
        "--model", choices=MODELS, help="default: that of the weights, or arm_base on a GPU and arm_tiny without"
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="checkpoint for the backbone, of any kind, or hf://OWNER/NAME; default: checkpoints/arm_*_pretrain.pth if "
        "it is there, else from scratch",
    )
    parser.add_argument(
        "--classes", metavar="FILE", type=Path, help="for label maps: lines NAME, NAME R G B or NUMBER NAME, or JSON"
    )
    parser.add_argument(
        "--ignore-zero", action="store_true", help="for label maps: a stored 0 is ignored, and k is the k-th class"
    )
    parser.add_argument("--force", action="store_true", help="replace CONFIG.py and its folder CONFIG_data")
    args = parser.parse_args()

    # imported here: --help and wrong arguments need no torch
    from arm_toolkit.engine.quiet import quiet_imports

    with quiet_imports():
        from arm_toolkit.engine.new_config import new_config

    options = dict(model=args.model, weights=args.weights, classes=args.classes, ignore_zero=args.ignore_zero)
    new_config(args.data, args.out, **options, force=args.force, progress=sys.stderr.isatty())


if __name__ == "__main__":
    run_tool(main)
