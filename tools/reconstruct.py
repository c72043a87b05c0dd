"""Draw what a pretrained model predicts: input, prediction cluster by cluster given the true past, free-running, error.

Example:
    python tools/reconstruct.py work_dirs/arm_ti/epoch_20.pth photographs/ --out work_dirs/reconstruction.png --given 3
"""

import argparse
import os
from pathlib import Path

import torch

from arm_pretrain import ImageCrops
from arm_toolkit.analysis.reconstruction import draw, load_images, load_pretrainer
from arm_toolkit.errors import ConfigError, run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="training checkpoint of AR pretraining")
    parser.add_argument("images", help="folder of images at any depth, or a text file with one path a line")
    parser.add_argument("--out", type=Path, default=Path("reconstruction.png"), help="PNG to write (%(default)s)")
    parser.add_argument("--count", type=int, default=4, help="images, the first ones (4)")
    parser.add_argument("--given", type=int, default=1, help="true clusters that free running starts from (1)")
    parser.add_argument("--seed", type=int, default=0, help="of a random order (0)")
    args = parser.parse_args()
    if args.count < 1:
        raise ConfigError(f"--count {args.count}: give at least 1")
    if args.out.suffix != ".png":
        raise ConfigError(f"--out {args.out}: give a name ending in .png")
    model, cfg = load_pretrainer(args.checkpoint)
    try:
        crops = ImageCrops(args.images, size=cfg.train_dataloader.dataset.size, augment=False)
    except (ValueError, ImportError) as error:  # no image, a broken archive
        raise ConfigError(str(error)) from None
    torch.manual_seed(args.seed)
    try:
        picture = draw(model, load_images(model, crops, range(min(args.count, len(crops)))), args.given)
    except ValueError as error:  # predicts tokens, or --given out of range
        raise ConfigError(f"{args.checkpoint} with --given {args.given}: {error}") from None
    args.out.parent.mkdir(parents=True, exist_ok=True)
    partial = args.out.with_name(f"{args.out.name}.part")
    partial.write_bytes(picture)
    os.replace(partial, args.out)
    print(f"{args.out}: {min(args.count, len(crops))} images")


if __name__ == "__main__":
    run_tool(main)
