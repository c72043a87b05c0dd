"""Draw what an encoder looks at: features, receptive fields, and the share of each scan direction.

Writes into a folder:
  features.png         photographs at their full size, and the principal components of their patch features as colours
  receptive_field.png  after each block, how much each pixel moves the centre patch
  directions.png       for four scans, what each direction adds to each patch, and on average after each block

Examples, for a checkpoint of any kind (pretraining, backbone, classifier, detector, segmentor, the authors'):
    python tools/visualize_features.py work_dirs/arm_ti/epoch_20.pth photographs/ --out work_dirs/features
    python tools/visualize_features.py checkpoints/arm_b_pretrain.pth photographs/ --scans 4
"""

import argparse
import os
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from arm_images.find import find_images
from arm_images.read import ImageFiles
from arm_toolkit.analysis.features import (
    load_encoder,
)
from arm_toolkit.errors import ConfigError, run_tool
from tools.visualize_features import _directions, _features, _receptive_fields


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="weights of any kind, with patches side by side (no smaller stride)")
    parser.add_argument("images", help="folder of images at any depth, or a text file with one path a line")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/features"), help="folder (%(default)s)")
    parser.add_argument("--count", type=int, default=4, help="images, the first ones (4)")
    parser.add_argument(
        "--scans", type=int, choices=(1, 4), help="4 copies a single scan to four (default: the file's)"
    )
    parser.add_argument("--max-side", type=int, default=1024, help="pixels; larger images are made smaller (1024)")
    args = parser.parse_args()
    if args.count < 1 or args.max_side < 16:
        raise ConfigError(f"--count {args.count} --max-side {args.max_side}: give at least 1 image of 16 pixels")
    model = load_encoder(args.checkpoint, args.scans)
    try:
        files = ImageFiles(find_images(args.images))
    except (ValueError, ImportError) as error:  # no image, a broken archive
        raise ConfigError(str(error)) from None
    images = [files.load_rgb(i)[0] for i in range(min(args.count, len(files)))]
    for image in images:
        image.thumbnail((args.max_side, args.max_side), Image.Resampling.BICUBIC)
    args.out.mkdir(parents=True, exist_ok=True)
    _save(_features(model, images), args.out / "features.png")
    _save(_receptive_fields(model, images), args.out / "receptive_field.png")
    if model.scans > 1:
        _save(_directions(model, images), args.out / "directions.png")
    else:
        print("one scan: no directions to compare (--scans 4 copies it to four)")


def _save(figure: Figure, path: Path) -> None:
    partial = path.with_name(f"{path.name}.part")
    figure.savefig(partial, format="png", dpi=110)
    os.replace(partial, path)
    print(path)


if __name__ == "__main__":
    run_tool(main)
