"""Checks that the sections of a configuration are of the kind that everything reads: dicts, lists or names."""

import re

from mmengine.config import Config

from ..errors import ConfigError
from .checks import named_dicts

TASKS = {"mmdet": "detection", "mmseg": "segmentation"}  # by default_scope
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
SECTIONS = (
    *("train_cfg", "val_cfg", "test_cfg", "optim_wrapper", "default_hooks", "env_cfg", "visualizer"),
    *("auto_scale_lr", "randomness", "log_processor", "model"),
)
PARTS = ("dataset", "metainfo", "data_prefix", "filter_cfg")  # of data loaders and data sets


def check_structure(cfg: Config) -> None:
    """Check that sections are dicts, or None, and that data loaders have a data set.

    Raises:
        ConfigError: naming the key, its value and what to give.
    """
    for key in (*LOADERS, *SECTIONS):
        _require_dict(key, cfg.get(key))
    scope = cfg.get("default_scope")
    if scope is not None and not (isinstance(scope, str) and scope.isidentifier()):
        raise ConfigError(f"default_scope={scope!r}: give a name, as 'mmdet'")
    for where, node in named_dicts(cfg):
        kind = node.get("type", "X")
        if kind is None or isinstance(kind, str) and not re.fullmatch(r"\w+(\.\w+)*", kind):
            raise ConfigError(f"{where}.type={node['type']!r}: give the name of a registered class")
    for loader in LOADERS:
        if cfg.get(loader) is not None and not cfg[loader].get("dataset"):
            raise ConfigError(f"{loader} has no dataset; give {loader}.dataset=dict(type=...)")
        for where, node in named_dicts(cfg.get(loader), loader):
            for key in PARTS:
                _require_dict(f"{where}.{key}", node.get(key))


def _require_dict(where: str, value: object) -> None:
    if not isinstance(value, dict | None):
        raise ConfigError(f"{where}={value!r}: it must be a dict; to change a value in it, give {where}.KEY=VALUE")
