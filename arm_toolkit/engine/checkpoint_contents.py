"""Checks what a training checkpoint holds besides weights before a run is resumed from it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from arm_backbone.checkpoint.files import CheckpointError, read_checkpoint

from ..errors import ConfigError, one_line, user_errors
from .config import config_from_text
from .config_text import buildable, parse_config

# key -> its type; mmengine reads all of them
PARTS = {"meta": dict, "message_hub": dict, "optimizer": dict, "param_schedulers": (list, dict)}
HUB_PARTS = ("log_scalars", "runtime_info", "resumed_keys")
_AGAIN = "give a checkpoint of an interrupted run, or start from its weights with --cfg-options load_from=FILE"


def check_resumable(checkpoint: dict, where: str, max_iters: int, max_epochs: int | None) -> None:
    """Check the parts of a checkpoint that resuming reads, and remove what mmengine would execute.

    mmengine executes the text `meta["config"]`, which older versions wrote; ours does not contain it.

    Args:
        where: name of the file, for messages.
        max_iters: length of the run in iterations.
        max_epochs: its length in epochs, None if it counts iterations.

    Raises:
        CheckpointError: naming the file, the key and what is wrong with it.
    """
    for key, kind in PARTS.items():
        if key in checkpoint and not isinstance(checkpoint[key], kind):
            raise CheckpointError(f"{where}: {key} is a {type(checkpoint[key]).__name__}, not a dict or list; {_AGAIN}")
    meta = checkpoint.get("meta", {})
    for key in ("iter", "epoch"):
        count = meta.get(key)
        if type(count) is not int or count < 0:
            raise CheckpointError(f"{where}: meta.{key} is {count!r}, not a number of {key}s; {_AGAIN}")
    for key, end in (("epoch", max_epochs), ("iter", max_iters)):
        if end is not None and meta[key] > end:
            raise CheckpointError(
                f"{where}: meta.{key} is {meta[key]}, but this run ends at {end}; set train_cfg, data set and batch "
                "size to those of the interrupted run"
            )
    hub = checkpoint.get("message_hub")
    missing = [key for key in HUB_PARTS if not isinstance((hub or {}).get(key), dict)]
    if missing:
        raise CheckpointError(f"{where}: message_hub has no dict {missing[0]}; {_AGAIN}")
    text = meta.pop("config", None)
    if text is not None:
        try:
            parse_config(text, where)
        except (ConfigError, TypeError) as error:
            raise CheckpointError(f"{one_line(error)}; {_AGAIN}") from None


def check_file(path: str | os.PathLike) -> None:
    """Check that a checkpoint executes nothing in loaders that unpickle it or execute its configuration.

    Call it before another library loads a file from somebody else, such as mmdet's `init_detector`, mmseg's
    `init_model` and mmengine's inferencers.

    Raises:
        CheckpointError: if the file cannot be read, or would execute code when it is unpickled.
        ConfigError: if a configuration in it is more than data.
    """
    checkpoint = read_checkpoint(path, mmap=True)
    meta, hub = (_dict(checkpoint.get(key)) for key in ("meta", "message_hub"))
    if meta.get("config") is not None:
        parse_config(str(meta["config"]), str(path))
    for text in (meta.get("cfg"), _dict(hub.get("runtime_info")).get("cfg")):
        if text is not None:
            cfg = config_from_text(str(text), str(path))
            if cfg.get("model"):
                buildable(cfg.to_dict()["model"], "model", str(path), cfg.get("default_scope") or "mmengine")


def _dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}


@contextmanager
def resuming(where: str) -> Iterator[None]:
    """Turn any error of mmengine about the contents of a checkpoint into one line that names the file."""
    try:
        yield
    except user_errors():
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, AssertionError, RuntimeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else one_line(error)
        raise CheckpointError(f"{where} cannot be resumed from ({what}); {_AGAIN}") from error
