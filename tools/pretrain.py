"""Pretrain ARM autoregressively on unlabeled images.

Examples:
    python tools/pretrain.py --model arm_tiny --data data/imagenet/train --epochs 20 --batch-size 32 --auto-scale-lr
    python tools/pretrain.py --model arm_base --data photos.txt --data-prefix data  # lines are relative to data/
    python tools/pretrain.py pretrain/configs/arm_b.py --cfg-options train_dataloader.num_workers=8

On several devices, use tools/dist_train.sh CONFIG GPUS.
"""

import argparse
from pathlib import Path

from arm_toolkit.engine.arguments import add_train_arguments
from arm_toolkit.errors import ConfigError, run_tool

CONFIGS = Path(__file__).resolve().parent.parent / "pretrain" / "configs"
SHORT = dict(tiny="ti", small="s", base="b", large="l", huge="h")
MODELS = [f"arm_{name}" for name in SHORT]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", help="configuration file; give this or --model")
    parser.add_argument("--model", help=f"train with the paper's recipe for one of {', '.join(MODELS)}")
    parser.add_argument("--data", help="folder of images or .tar archives, or text file with one path per line")
    parser.add_argument(
        "--data-prefix", metavar="DIR", help="folder that the lines of the text file are relative to (default: its own)"
    )
    parser.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="instead of the recipe's number; the warm-up is scaled with it",
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="images per device")
    add_train_arguments(parser)
    args = parser.parse_args()
    if args.data == "":
        raise ConfigError("--data is empty; give a folder of images, or a text file with one path per line")
    if (args.config is None) == (args.model is None):
        raise ConfigError("give either a configuration file or --model, e.g. --model arm_base")
    if args.model is not None and args.model not in MODELS:
        raise ConfigError(f"--model {args.model} is unknown; give one of {', '.join(MODELS)}")
    path = args.config or CONFIGS / f"arm_{SHORT[args.model.removeprefix('arm_')]}.py"

    # imported here: --help and wrong arguments need no torch
    from arm_toolkit.engine.config import load_config
    from arm_toolkit.engine.launch import train
    from arm_toolkit.engine.values import require_keys

    cfg = load_config(str(path), args.cfg_options)
    require_keys(cfg, "train_dataloader", "train_cfg", "optim_wrapper")
    dataset = cfg.train_dataloader.dataset
    if args.data is not None:
        dataset.path = args.data
    if args.data_prefix is not None:
        dataset.prefix = args.data_prefix
    if args.batch_size is not None:
        cfg.train_dataloader.batch_size = args.batch_size
    if args.epochs is not None:
        _rescale(cfg, args.epochs)
    train(cfg, args, Path(path).stem if args.config else f"pretrain_{args.model}")


def _rescale(cfg, epochs: int) -> None:
    """Scale the schedule to `epochs`, with at least one epoch of warm-up."""
    if epochs < 2:
        raise ConfigError(f"--epochs {epochs}: give at least 2, of which one is warm-up")
    parts = cfg.get("param_scheduler") or []
    for part in parts if isinstance(parts, list) else [parts]:  # the runner makes other parts end with the training
        if "warmup" in part:
            part.warmup = max(1, round(part.warmup * epochs / cfg.train_cfg.max_epochs))
    cfg.train_cfg.max_epochs = epochs


if __name__ == "__main__":
    run_tool(main, interrupted="interrupted; continue with --resume", prints_log=True)
