"""Publish a trained model: write a folder with its weights, its configuration as data and a model card.

CHECKPOINT is a detector, segmentor or classifier of tools/train.py, or a backbone or pretraining model of which timm
reads the folder. Nothing in the folder is executed when it is loaded. See docs/publishing.md.

Examples:
    python tools/publish.py work_dirs/mine/iter_400.pth published/mine --license cc-by-4.0 --dataset my-images
    python tools/publish.py work_dirs/mine/iter_400.pth published/mine --push OWNER/NAME
"""

import argparse
import re
from pathlib import Path

from arm_toolkit.errors import ConfigError, run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=".pth or .safetensors file, or hf://OWNER/NAME/FILE")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder to write; an earlier one is replaced")
    parser.add_argument("--config", help="configuration of the training, if the checkpoint does not contain it")
    parser.add_argument("--license", metavar="NAME", help="licence of the weights, as the hub names it: cc-by-4.0, mit")
    parser.add_argument(
        "--dataset", action="append", default=[], metavar="NAME", help="data set of the training; can be repeated"
    )
    parser.add_argument("--example", type=Path, metavar="IMAGE", help="draw predictions on this image for the card")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload the folder to the Hugging Face hub")
    parser.add_argument("--private", action="store_true", help="with --push: a new repository is not public")
    args = parser.parse_args()

    if args.push and not re.fullmatch(r"[\w.-]+/[\w.-]+", args.push):
        raise ConfigError(f"--push {args.push}: give OWNER/NAME of a repository on the hub")
    if args.private and not args.push:
        raise ConfigError("--private: it needs --push OWNER/NAME")
    if args.example is not None and not args.example.is_file():
        raise ConfigError(f"--example {args.example} does not exist; give an image")

    # imported here: --help and wrong arguments need no torch
    from arm_toolkit.inference.publish import Statements, publish
    from arm_toolkit.inference.upload import upload

    published = publish(
        args.checkpoint, args.folder, args.config, Statements(tuple(args.dataset), args.license, args.example)
    )
    print(f"{args.checkpoint} -> {published.folder} ({published.task or 'backbone'})")
    if args.push:
        print(f"uploaded to {upload(published.folder, args.push, args.private)}")


if __name__ == "__main__":
    run_tool(main)
