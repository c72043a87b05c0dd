"""Draw an encoder's features, its receptive fields, and the share of each scan direction.

Writes into a folder:
  features.png         images (up to --max-side), and the principal components of their patch features as colours
  receptive_field.png  how strongly each pixel affects the centre patch after each block
  directions.png       with four scans: each direction's contribution per patch, and averaged per block

Examples, with any checkpoint (pretraining, backbone, classifier, detector, segmentor, the authors'):
    python tools/visualize_features.py work_dirs/arm_ti/epoch_20.pth photographs/ --out work_dirs/features
    python tools/visualize_features.py checkpoints/arm_b_pretrain.pth photographs/ --scans 4
"""

import argparse
from pathlib import Path

from arm_toolkit.analysis.feature_figures import open_images, write_figures
from arm_toolkit.analysis.features import load_encoder
from arm_toolkit.engine.environment import check_environment
from arm_toolkit.errors import ConfigError, run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="weights of any kind whose patch stride is the patch size")
    parser.add_argument("images", help="folder of images or .tar archives, or text file with one path per line")
    parser.add_argument(
        "--out", type=Path, default=Path("work_dirs/features"), metavar="DIR", help="folder to write to (%(default)s)"
    )
    parser.add_argument("--count", type=int, default=4, metavar="N", help="number of images to draw (%(default)s)")
    parser.add_argument(
        "--scans",
        type=int,
        choices=(1, 4),
        help="scan directions; 4 copies one scan to four, of Vim to two (default: the checkpoint's)",
    )
    parser.add_argument(
        "--max-side", type=int, default=1024, metavar="N", help="larger images are shrunk to N pixels (%(default)s)"
    )
    args = parser.parse_args()
    if args.count < 1 or args.max_side < 16:
        raise ConfigError(f"--count {args.count} --max-side {args.max_side}: give at least 1 image of 16 pixels")
    check_environment()
    model = load_encoder(args.checkpoint, args.scans)
    for file in write_figures(model, open_images(args.images, args.count, args.max_side), args.out):
        print(file)
    if model.scans == 1:
        print("the checkpoint has one scan: no directions to compare (--scans 4 copies it to four, of Vim to two)")


if __name__ == "__main__":
    run_tool(main)
