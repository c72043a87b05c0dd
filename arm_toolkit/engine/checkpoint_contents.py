"""Checks what a training checkpoint holds besides weights before a run is resumed from it."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor

from arm_backbone.checkpoint.files import CheckpointError, read_checkpoint

from ..errors import ConfigError, one_line, user_errors
from .config import config_from_text
from .config_text import buildable, parse_config
from .resume import AGAIN

PARTS = ("meta", "message_hub", "optimizer")  # dicts that mmengine reads
HUB_PARTS = ("log_scalars", "runtime_info", "resumed_keys")
_AGAIN = f"give a checkpoint of an interrupted run, {AGAIN}"


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
    for key in PARTS:
        if key in checkpoint and not isinstance(checkpoint[key], dict):
            raise CheckpointError(f"{where}: {key} is a {type(checkpoint[key]).__name__}, not a dict; {_AGAIN}")
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
    _check_hub(hub, where)
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


def _check_hub(hub: dict, where: str) -> None:
    """Check the log buffers of a message hub, and keep only what mmengine needs of `resumed_keys`."""
    for name, buffer in hub["log_scalars"].items():
        histories = [buffer.get(key) for key in ("log_history", "count_history")] if isinstance(buffer, dict) else []
        whole = len(histories) == 2 and all(
            isinstance(history, list) and all(isinstance(value, Real) for value in history) for history in histories
        )
        if not whole or len(histories[0]) != len(histories[1]) or type(buffer.get("max_length")) is not int:
            raise CheckpointError(f"{where}: message_hub.log_scalars.{name} is not a log of numbers; {_AGAIN}")
    # a key is entered again when it is logged again; one that contradicts this stops mmengine
    hub["resumed_keys"] = {key: True for key, resumed in hub["resumed_keys"].items() if resumed is True}


def check_optimizer(checkpoint: dict, where: str, optim_wrapper: OptimWrapper) -> None:
    """Check that a checkpoint's optimizer has the form of this run's; PyTorch takes any.

    Args:
        where: name of the file, for messages.
        optim_wrapper: of this run, newly built.

    Raises:
        CheckpointError: naming the file, the key and what is wrong with it.
    """
    saved, own = dict(checkpoint["optimizer"]), optim_wrapper.state_dict()
    _check_moments(saved.pop("state", None), optim_wrapper.optimizer, f"{where}: optimizer.state")
    del own["state"]
    _same_form(saved, own, f"{where}: optimizer")
    for index, (one, other) in enumerate(zip(saved["param_groups"], own["param_groups"], strict=True)):
        if one["params"] != other["params"]:
            raise CheckpointError(f"{where}: optimizer.param_groups.{index}.params are not this run's; {_AGAIN}")


def _check_moments(state: object, optimizer: torch.optim.Optimizer, where: str) -> None:
    """Check the moments of each parameter: a finite number, or a tensor of the parameter's shape."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not isinstance(state, dict) or not all(isinstance(entry, dict) for entry in state.values()):
        raise CheckpointError(f"{where} is not a dict of dicts; {_AGAIN}")
    names = {name for entry in state.values() for name in entry}
    for index, entry in state.items():
        if type(index) is not int or not 0 <= index < len(parameters):
            raise CheckpointError(
                f"{where} has the key {index!r}, but there are {len(parameters)} parameters; {_AGAIN}"
            )
        for name in names:
            value, key = entry.get(name), f"{where}.{index}.{name}"
            if isinstance(value, Tensor):
                fits = value.is_floating_point() and value.shape in ((), parameters[index].shape)
                if not fits:
                    raise CheckpointError(
                        f"{key} is a {value.dtype} tensor of shape {tuple(value.shape)}, but the parameter has "
                        f"{tuple(parameters[index].shape)}; {_AGAIN}"
                    )
            elif not isinstance(value, Real):
                raise CheckpointError(f"{key} is {_shown(value)}, not a tensor or number; {_AGAIN}")
            elif not math.isfinite(value):  # `resume.differences` has looked at the tensors
                raise CheckpointError(f"{key} holds NaN or infinite values; {_AGAIN}")
            if name == "step" and float(value) < 1:
                raise CheckpointError(f"{key} is {_shown(value)}, not a number of steps; {_AGAIN}")


def _same_form(found: object, expected: object, where: str) -> None:
    """Check that two nested values have the same keys, lengths and types. None fits anything.

    Flags may be missing and other keys may be there: they differ between versions of PyTorch. What schedules add to
    groups of parameters may be missing, too: the run that wrote it can have had others.
    """
    if isinstance(expected, dict):
        if not isinstance(found, dict):
            raise CheckpointError(f"{where} is {_shown(found)}, not a dict; {_AGAIN}")
        flags = {key for key, value in expected.items() if isinstance(value, bool | None)}
        added = {key for key in expected if str(key).startswith("initial_")}
        added |= {"momentum"} if "betas" in expected else set()
        missing = sorted(map(str, expected.keys() - flags - added - found.keys()))
        if missing:
            raise CheckpointError(f"{where} has no {missing[0]}; resume with the optimizer it began with")
        for key in expected.keys() & found.keys():
            _same_form(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            has = f"{len(found)} entries" if isinstance(found, list | tuple) else _shown(found)
            raise CheckpointError(
                f"{where}: {has} for {len(expected)} of this run; resume with the model and optimizer it began with"
            )
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            _same_form(one, other, f"{where}.{index}")
    elif isinstance(expected, bool | str):
        if type(found) is not type(expected):
            raise CheckpointError(f"{where} is {_shown(found)}, not a {type(expected).__name__}; {_AGAIN}")
    elif isinstance(expected, Real):
        if not isinstance(found, Real) or isinstance(found, bool) or not math.isfinite(found):
            raise CheckpointError(f"{where} is {_shown(found)}, not a number; {_AGAIN}")


def _shown(value: object) -> str:
    """A value in at most 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


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
