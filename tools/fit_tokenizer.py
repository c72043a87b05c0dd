"""Fit a small tokenizer for discrete targets: k-means on normalized image patches.

Example, followed by pretraining with the tokenizer:
    python tools/fit_tokenizer.py data/imagenet/train checkpoints/kmeans_512.safetensors --tokens 512 --images 2000
    python tools/pretrain.py pretrain/configs/ablations/target_tokens.py
"""

import argparse

import torch

from arm_backbone.checkpoint.files import write_checkpoint
from arm_pretrain import ImageCrops
from arm_pretrain.tokenizers import fit_centroids, nearest, sample_patches
from arm_toolkit.errors import ConfigError, run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="folder of images or .tar archives, or text file with one path per line")
    parser.add_argument("target", help="file to write, .pth or .safetensors")
    parser.add_argument(
        "--data-prefix", metavar="DIR", help="folder that the lines of the text file are relative to (default: its own)"
    )
    parser.add_argument("--tokens", type=int, default=512, metavar="N", help="size of the vocabulary (%(default)s)")
    parser.add_argument(
        "--images", dest="count", type=int, default=1000, metavar="N", help="number of images to use (%(default)s)"
    )
    parser.add_argument("--size", type=int, default=192, metavar="N", help="side of a crop in pixels (%(default)s)")
    parser.add_argument(
        "--patch-size", type=int, default=16, metavar="N", help="side of a patch in pixels (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices (%(default)s)")
    args = parser.parse_args()
    if args.tokens < 2:
        raise ConfigError(f"--tokens {args.tokens}: give at least 2")
    torch.manual_seed(args.seed)
    batches = sample_patches(ImageCrops(args.images, args.data_prefix, args.size), args.count, args.patch_size)
    try:
        centroids = fit_centroids(batches, args.tokens)
    except ValueError as error:
        raise ConfigError(f"{args.images}: {error}") from None
    write_checkpoint(args.target, dict(centroids=centroids), dict(kind="kmeans", patch_size=args.patch_size))
    patches = torch.cat(batches)
    error = (centroids[nearest(patches, centroids)] - patches).square().mean()
    print(f"{args.target}: {args.tokens} tokens from {len(patches)} patches, mean squared error {error:.3f}")


if __name__ == "__main__":
    run_tool(main)
