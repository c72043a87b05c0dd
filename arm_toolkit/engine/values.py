"""Checks the numbers of a configuration that no constructor checks, or that would fail without naming the key."""

import math
from collections.abc import Callable
from numbers import Real

from mmengine.config import Config

from ..errors import ConfigError
from .checks import named_dicts
from .structure import LOADERS


def _whole(least: int) -> Callable[[object], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


_COUNT = (_whole(1), "give a whole number of 1 or more")
_COUNT_OR_0 = (_whole(0), "give a whole number of 0 or more")
_INTERVAL = (lambda value: _whole(1)(value) or value == -1, "give a whole number of 1 or more, or -1 for never")
_NOT_NEGATIVE = (lambda value: _number(value) and value >= 0, "give a number of 0 or more")
_POSITIVE = (lambda value: _number(value) and value > 0, "give a number above 0")

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

# dotted key -> its test and what to give; keys that are absent or None are not tested
RULES = {
    "train_cfg.max_iters": _COUNT,
    "train_cfg.max_epochs": _COUNT,
    "train_cfg.val_interval": _COUNT,
    "train_cfg.val_begin": _COUNT_OR_0,
    "optim_wrapper.optimizer.lr": _POSITIVE,
    "optim_wrapper.optimizer.weight_decay": _NOT_NEGATIVE,
    "optim_wrapper.optimizer.eps": _POSITIVE,
    "optim_wrapper.optimizer.momentum": _NOT_NEGATIVE,
    "optim_wrapper.accumulative_counts": _COUNT,
    "optim_wrapper.clip_grad.max_norm": (
        lambda value: isinstance(value, Real) and value > 0,
        "give a number above 0, or clip_grad=None",
    ),
    "default_hooks.checkpoint.max_keep_ckpts": _INTERVAL,
    "auto_scale_lr.base_batch_size": _COUNT,
    "randomness.seed": _COUNT_OR_0,
    "log_level": (lambda value: value in LEVELS, f"give one of {', '.join(LEVELS)}"),
} | {
    f"{part}_dataloader.{key}": rule
    for part in ("train", "val", "test")
    for key, rule in (("batch_size", _COUNT), ("num_workers", _COUNT_OR_0), ("num_batch_per_epoch", _COUNT))
}


def require_keys(cfg: Config, *keys: str) -> None:
    """Check that a configuration has parts that are dicts (or lists of them).

    Raises:
        ConfigError: naming the first key that is absent.
    """
    for key in keys:
        if not isinstance(cfg.get(key), dict | list):
            raise ConfigError(f"the configuration has no {key}; give a complete one, or inherit from one with _base_")


def check_values(cfg: Config) -> None:
    """Check lengths, intervals, rates, batch sizes, ranges and samplers.

    Raises:
        ConfigError: naming the key, its value and what to give.
    """
    for name, node in named_dicts(cfg):
        for key, value in node.items():
            where = f"{name}.{key}" if name else str(key)
            rule = RULES.get(where)
            if key == "interval" and "_hooks." in where:
                rule = _INTERVAL
            if rule and value is not None and not rule[0](value):
                raise ConfigError(f"{where}={value!r}: {rule[1]}")
            _check_numbers(where, value)
    for loader in LOADERS:
        _check_end(cfg, loader)


def _check_numbers(where: str, value: object) -> None:
    """No number may be NaN; the range of a crop's area, and any pair whose key ends in `_range`, must ascend."""
    numbers = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(number, float) and math.isnan(number) for number in numbers):
        raise ConfigError(f"{where}={value!r}: NaN is not a number; correct it")
    is_range = where.endswith(("_range", ".scale")) and len(numbers) == 2 and all(map(_number, numbers))
    if not is_range:
        return
    low, high = numbers
    is_fraction = where.endswith("_range") or min(numbers) <= 1  # a scale of larger numbers is a size in pixels
    if is_fraction and (low > high or (where.endswith(".scale") and low <= 0)):
        raise ConfigError(
            f"{where}={value!r}: give the smaller number first, and for a crop's area only numbers above 0"
        )


def _check_end(cfg: Config, loader: str) -> None:
    """An epoch and an evaluation end with their sampler, so it must end."""
    sampler = (cfg.get(loader) or {}).get("sampler")
    if not isinstance(sampler, dict) or loader == "train_dataloader" and "max_epochs" not in cfg.train_cfg:
        return
    what = "the training counts epochs" if loader == "train_dataloader" else "an evaluation must"
    if sampler.get("infinite"):
        raise ConfigError(f"{loader}.sampler.infinite={sampler.infinite!r} never ends, but {what}: give False")
    if "InfiniteSampler" in str(sampler.get("type")):
        raise ConfigError(f"{loader}.sampler.type={sampler.type!r} never ends, but {what}: give 'DefaultSampler'")
