"""Command-line arguments of training and testing.

Imports neither PyTorch nor OpenMMLab, so that `--help` and a wrong argument end at once.
"""

import argparse
from pathlib import Path

from ..errors import ConfigError


def check_config_path(path: str) -> None:
    """Check that a path is a configuration file.

    Raises:
        ConfigError: if it does not exist or is not a .py file.
    """
    if not Path(path).is_file():
        raise ConfigError(
            f"configuration {path} does not exist; see det_configs/, seg_configs/, cls_configs/ and pretrain/configs/"
        )
    if Path(path).suffix != ".py":
        raise ConfigError(f"configuration {path} is not a .py file; a checkpoint comes second on the command line")


class ConfigFile(argparse.Action):
    """A command-line argument that must be the path of a configuration, see `check_config_path`."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        check_config_path(values)
        setattr(namespace, self.dest, values)


class Options(argparse.Action):
    """`--cfg-options KEY=VALUE ...` as a dict of texts; `arm_toolkit.engine.options` reads them.

    Raises:
        ConfigError: for a pair without "=" or without a key.
    """

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        options = dict(getattr(namespace, self.dest) or {})
        for pair in values:
            key, equals, value = pair.partition("=")
            if not key.strip() or not equals:
                raise ConfigError(f"{option_string} {pair}: give KEY=VALUE, without spaces around =")
            options[key] = value
        setattr(namespace, self.dest, options)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing share."""
    parser.add_argument("--work-dir", help="folder for logs and checkpoints (default: work_dirs/CONFIG_NAME)")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=Options,
        metavar="KEY=VALUE",
        help="override configuration keys, e.g. data_root=PATH train_dataloader.batch_size=1",
    )
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm", "mpi"),
        default="none",
        help="what started the processes, if there are several; tools/dist_*.sh and tools/slurm_*.sh set it",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="only check configuration, arguments and files, as far as this is possible before anything is built",
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


DTYPES = ("float32", "bfloat16")  # of testing and prediction


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Add the precision of testing and prediction."""
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of the matrix products; bfloat16 is faster where the machine multiplies it, and changes results slightly "
        "(%(default)s)",
    )


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all arguments of training."""
    add_arguments(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="PATH",
        help="resume from the newest checkpoint in the work dir, or from PATH",
    )
    parser.add_argument(
        "--amp",
        action="store_true",
        help="train under bfloat16 autocast, even on a CPU or if the configuration trains in float32",
    )
    parser.add_argument("--auto-scale-lr", action="store_true", help="scale the learning rate with the total batch")
