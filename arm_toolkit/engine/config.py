"""Configurations: loading, overrides from the command line, and everything that can be checked before anything runs."""

import difflib
import inspect
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.runner import Runner, set_random_seed
from torch.utils.data import DataLoader

from ..errors import ConfigError, one_line

RUNNER_KEYS = frozenset(inspect.signature(Runner.__init__).parameters) - {"self", "cfg"}
# read by mmengine, mmdet or our tools besides the Runner's arguments
OTHER_KEYS = frozenset(
    "custom_imports data_root default_scope find_unused_parameters model_wrapper_cfg sync_bn tta_model "
    "tta_pipeline".split()
)


def load_config(path: str, options: dict | None = None) -> Config:
    """Read a configuration and apply `--cfg-options`.

    An option must name an existing key, or a new argument of something with a `type` (whose constructor checks it).
    `data_root=PATH` replaces that prefix in every data set and evaluator.

    Raises:
        ConfigError: naming file or key, value and remedy.
    """
    if not Path(path).is_file():
        raise ConfigError(f"configuration {path} does not exist; see det_configs/, seg_configs/ and pretrain/configs/")
    if Path(path).suffix != ".py":
        raise ConfigError(f"configuration {path} is no .py file; a checkpoint comes second on the command line")
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # noqa: BLE001 a configuration is code and can fail in any way
        raise ConfigError(f"configuration {path} cannot be read: {one_line(error)}") from error
    _check_top_level(cfg, path)
    options = dict(options or {})
    data_root = options.pop("data_root", None)
    for key, value in options.items():
        _check_option(cfg, key, value)
    cfg.merge_from_dict(options)
    if data_root is not None:
        _move_data_root(cfg, str(data_root), path)
    return cfg


def _check_top_level(cfg: Config, path: str) -> None:
    known = RUNNER_KEYS | OTHER_KEYS
    for key in cfg:
        close = difflib.get_close_matches(key, known, 1, cutoff=0.9)
        if key not in known and close:
            raise ConfigError(f"{path} has the unknown key {key!r}; did you mean {close[0]!r}?")


def _check_option(cfg: Config, key: str, value: object) -> None:
    parts = key.split(".")
    if parts[0] not in RUNNER_KEYS | OTHER_KEYS:
        hint = _suggestion(parts[0], RUNNER_KEYS | OTHER_KEYS)
        raise ConfigError(f"--cfg-options {key}={value}: nothing reads a top-level key {parts[0]!r}{hint}")
    node: object = cfg
    for depth, part in enumerate(parts):
        where = ".".join(parts[:depth]) or "the configuration"
        if isinstance(node, list | tuple):
            if not part.isdigit() or int(part) >= len(node):
                raise ConfigError(
                    f"--cfg-options {key}={value}: {where} is a list of {len(node)}; give a number below that"
                )
            node = node[int(part)]
        elif isinstance(node, dict | Config):
            if part not in node:
                is_top = depth == 0
                if depth == len(parts) - 1 and (is_top or "type" in node or part in _optional(where)):
                    return  # an optional argument: its constructor judges it
                raise ConfigError(f"--cfg-options {key}={value}: {where} has no key {part!r}{_suggestion(part, node)}")
            node = node[part]
        else:
            raise ConfigError(f"--cfg-options {key}={value}: {where} is {node!r} and has no keys")


def _optional(where: str) -> set[str]:
    """Arguments that mmengine reads from a part without a `type`."""
    if where.endswith("_dataloader"):
        return {*inspect.signature(DataLoader.__init__).parameters, "num_batch_per_epoch"}
    return set(inspect.signature(set_random_seed).parameters) if where == "randomness" else set()


def _suggestion(key: str, known: object) -> str:
    close = difflib.get_close_matches(key, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(sorted(map(str, known))[:12])}"


def _move_data_root(cfg: Config, new: str, path: str) -> None:
    old = cfg.get("data_root")
    if old is None:
        raise ConfigError(f"--cfg-options data_root={new}: {path} has no data_root")
    new = new if new.endswith("/") or not old.endswith("/") else f"{new}/"

    def move(node: object) -> object:
        if isinstance(node, dict):
            for key in node:
                node[key] = move(node[key])
        elif isinstance(node, list | tuple):
            return type(node)(move(item) for item in node)
        elif isinstance(node, str) and (node == old or node.startswith(old.rstrip("/") + "/")):
            return new + node[len(old) :]
        return node

    move(cfg._cfg_dict)


class Options(DictAction):
    """mmengine's KEY=VALUE pairs; a pair without = is a ConfigError."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        for pair in values:
            if "=" not in pair:
                raise ConfigError(f"{option_string} {pair}: give KEY=VALUE, without spaces around =")
        super().__call__(parser, namespace, values, option_string)
