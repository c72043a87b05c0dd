"""Draw what a pretrained model predicts.

Each row is an image. Of autoregressive pretraining: the input, each cluster predicted from the true clusters before it,
the free-running prediction from the first --given clusters, and the error of the second column. Of MAE: the input, the
patches that the encoder reads (the masked ones are grey), these with the predictions of the others, and their error.

Example:
    python tools/reconstruct.py work_dirs/arm_ti/epoch_20.pth photographs/ --out work_dirs/reconstruction.png --given 3
"""

import argparse
from pathlib import Path

import torch

from arm_backbone.checkpoint.writing import replacing
from arm_pretrain import ImageCrops
from arm_toolkit.analysis.reconstruction import draw, given_units, load_images, load_pretrainer
from arm_toolkit.engine.environment import check_environment
from arm_toolkit.errors import ConfigError, run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="checkpoint of a pretraining run (epoch_N.pth)")
    parser.add_argument("images", help="folder of images or .tar archives, or text file with one path per line")
    parser.add_argument(
        "--out", type=Path, default=Path("reconstruction.png"), metavar="PNG", help="file to write (%(default)s)"
    )
    parser.add_argument("--count", type=int, default=4, metavar="N", help="number of images to draw (%(default)s)")
    parser.add_argument(
        "--given",
        type=int,
        metavar="N",
        help="true clusters that free-running starts from (1); not for MAE",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of a random order or mask (%(default)s)")
    parser.add_argument(
        "--trust", action="store_true", help="unpickle any object in the checkpoint and execute its configuration"
    )
    args = parser.parse_args()
    if args.count < 1:
        raise ConfigError(f"--count {args.count}: give at least 1")
    if args.out.suffix != ".png":
        raise ConfigError(f"--out {args.out}: give a name ending in .png")
    check_environment()
    model, cfg = load_pretrainer(args.checkpoint, args.trust)
    crops = ImageCrops(args.images, size=cfg.train_dataloader.dataset.size, augment=False)
    count = min(args.count, len(crops))
    torch.manual_seed(args.seed)
    try:
        given = given_units(model, args.given, 1)
        png = draw(model, load_images(model, crops, range(count)), given)
    except ValueError as error:
        raise ConfigError(f"{args.checkpoint}: {error}") from None
    with replacing(args.out) as partial:
        partial.write_bytes(png)
    print(f"{args.out}: {count} images")


if __name__ == "__main__":
    run_tool(main)
