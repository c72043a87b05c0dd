"""Fit a small tokenizer for discrete targets: k-means over normalised patches of images.

Example:
    python tools/fit_tokenizer.py data/imagenet/train checkpoints/kmeans_512.safetensors --tokens 512 --images 2000
    python tools/pretrain.py pretrain/configs/ablations/target_tokens.py
"""

import argparse

import torch
from mmengine.utils import ProgressBar

from arm_backbone.checkpoint.files import write_checkpoint
from arm_pretrain import ImageCrops
from arm_pretrain.targets import normalised_pixels, patchify
from arm_pretrain.tokenizers import fit_centroids, nearest
from arm_toolkit.errors import ConfigError, run_tool

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of the pretraining configurations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="folder of images at any depth, or a text file with one path a line")
    parser.add_argument("target", help="file to write, .pth or .safetensors")
    parser.add_argument("--data-prefix", help="folder that the lines of the text file start from")
    parser.add_argument("--tokens", type=int, default=512, help="size of the vocabulary (512)")
    parser.add_argument("--images", dest="count", type=int, default=1000, help="images to look at (1000)")
    parser.add_argument("--size", type=int, default=192, help="pixels of their crops (192)")
    parser.add_argument("--patch-size", type=int, default=16, help="pixels (16)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.tokens < 2:
        raise ConfigError(f"--tokens {args.tokens}: give at least 2")
    torch.manual_seed(args.seed)
    crops = ImageCrops(args.images, args.data_prefix, args.size)
    chosen = torch.randperm(len(crops))[: args.count].tolist()
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (MEAN, STD))
    batches, progress = [], ProgressBar(len(chosen))
    for index in chosen:
        image = (crops[index]["inputs"].unsqueeze(0).float() - mean) / std
        batches.append(normalised_pixels(patchify(image, args.patch_size))[0])
        progress.update()
    print()
    try:
        centroids = fit_centroids(batches, args.tokens)
    except ValueError as error:
        raise ConfigError(f"{args.images}: {error}") from None
    write_checkpoint(args.target, dict(centroids=centroids), dict(kind="kmeans", patch_size=args.patch_size))
    patches = torch.cat(batches)
    error = (centroids[nearest(patches, centroids)] - patches).square().mean()
    print(f"{args.target}: {args.tokens} tokens from {len(patches)} patches, mean squared error {error:.3f} of 1")


if __name__ == "__main__":
    run_tool(main)
