"""Loads configurations, applies overrides from the command line, and translates the names of moved modules."""

import difflib
import inspect
import tempfile
from collections.abc import Iterable
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner, set_random_seed
from mmengine.utils import import_modules_from_strings
from torch.utils.data import DataLoader

from ..errors import ConfigError, one_line
from .arguments import check_config_path
from .config_text import check_names, parse_config

RUNNER_KEYS = frozenset(inspect.signature(Runner.__init__).parameters) - {"self", "cfg"}
# keys that mmengine, mmdet or our tools read in addition to the Runner's arguments
OTHER_KEYS = frozenset(
    "custom_imports data_root default_scope find_unused_parameters model_wrapper_cfg sync_bn tta_model "
    "tta_pipeline".split()
)

# modules that custom_imports could name before version 0.1, and where their contents are now
MOVED = {
    "arm_toolkit": ("arm_toolkit.openmmlab",),
    "arm_toolkit.classification": (
        "arm_toolkit.datasets.class_folder",
        "arm_toolkit.evaluation.accuracy",
        "arm_toolkit.models.mixup",
    ),
    "arm_toolkit.cpu_amp": ("arm_toolkit.engine.optim_wrapper",),
    "arm_toolkit.ema": ("arm_toolkit.engine.ema_hook",),
    "arm_toolkit.finite": ("arm_toolkit.engine.finite_loss_hook",),
    "arm_toolkit.float32": ("arm_toolkit.models.float32_heads",),
    "arm_toolkit.hooks": ("arm_toolkit.engine.hooks",),
    "arm_toolkit.loop": ("arm_toolkit.engine.loops",),
    "arm_toolkit.runner": ("arm_toolkit.engine.runner",),
    "arm_toolkit.sampler": ("arm_toolkit.datasets.samplers",),
    "arm_toolkit.transforms": ("arm_toolkit.datasets.transforms",),
    "arm_toolkit.tta": ("arm_toolkit.models.instance_tta",),
    "arm_toolkit.watch": ("arm_toolkit.analysis.reconstruction_hook",),
}


def load_config(path: str, options: dict | None = None) -> Config:
    """Read a configuration file, import its `custom_imports`, and apply `--cfg-options`.

    Args:
        path: a .py file.
        options: values by dotted key. A key must exist, or be an optional argument: of the Runner, of a data loader, or
            of a dict with a `type`, whose constructor then checks it. `data_root=PATH` replaces the configuration's
            data_root wherever a path starts with it.

    Raises:
        ConfigError: naming the file or key, the value and the remedy.
    """
    check_config_path(path)
    try:
        cfg = Config.fromfile(path, import_custom_modules=False)
    except Exception as error:  # noqa: BLE001 a configuration is code that can raise anything
        raise ConfigError(f"configuration {path} cannot be read: {one_line(error)}") from error
    for name in _custom_imports(cfg, path):
        if name in MOVED:
            names = ", ".join(f'"{new}"' for new in MOVED[name])
            raise ConfigError(f'{path}: custom_imports has "{name}", which has moved; write {names} in its place')
    _import(cfg, path)
    _check_top_level(cfg, path)
    options = dict(options or {})
    data_root = options.pop("data_root", None)
    for key, value in options.items():
        _check_option(cfg, key, value)
    cfg.merge_from_dict(options)
    if data_root is not None:
        _move_data_root(cfg, str(data_root), path)
    return cfg


def config_from_text(text: str, where: str = "the checkpoint", trust: bool = False) -> Config:
    """The configuration that a checkpoint contains as text; imports its `custom_imports`.

    Modules that have moved get their new names, so that checkpoints of all versions load. The text is not executed (see
    `config_text.parse_config`), and only modules of known packages are imported. What is built from it
    goes through `config_text.buildable`.

    Args:
        where: name of the file, for messages.
        trust: execute the text and import any module that it names.

    Raises:
        ConfigError: naming file, line and what is not accepted, or the module that cannot be imported.
    """
    try:
        cfg = _execute(text) if trust else Config(parse_config(text, where))
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 a trusted text can raise anything, a key can be reserved
        raise ConfigError(f"{where}: its configuration cannot be read: {one_line(error)}") from error
    names = [new for name in _custom_imports(cfg, where) for new in MOVED.get(name, (name,))]
    if not trust:
        check_names(cfg.to_dict(), names, where)
    if names:
        cfg.custom_imports.imports = names
        _import(cfg, f"{where}: its configuration")
    return cfg


def _execute(text: str) -> Config:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.py")
        file.write_text(text)
        return Config.fromfile(file, import_custom_modules=False)


def _custom_imports(cfg: Config, where: str) -> list[str]:
    imports = cfg.get("custom_imports") or {}
    names = imports.get("imports") or [] if isinstance(imports, dict) else None
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{where}: custom_imports={imports!r}: give dict(imports=[MODULE, ...])")
    return list(names)


def _import(cfg: Config, where: str) -> None:
    try:
        import_modules_from_strings(**cfg.get("custom_imports") or dict(imports=None))
    except (Exception, SystemExit) as error:  # noqa: BLE001 a module can raise anything when imported
        raise ConfigError(f"{where}: custom_imports: {one_line(error)}") from error


def _check_top_level(cfg: Config, path: str) -> None:
    known = RUNNER_KEYS | OTHER_KEYS
    for key in cfg:
        close = difflib.get_close_matches(key, known, 1, cutoff=0.9)
        if key not in known and close:
            raise ConfigError(f"{path} has the unknown key {key!r}; did you mean {close[0]!r}?")


def _check_option(cfg: Config, key: str, value: object) -> None:
    parts = key.split(".")
    if parts[0] not in RUNNER_KEYS | OTHER_KEYS:
        hint = suggestion(parts[0], RUNNER_KEYS | OTHER_KEYS)
        raise ConfigError(f"--cfg-options {key}={value}: unknown top-level key {parts[0]!r}{hint}")
    node: object = cfg
    for depth, part in enumerate(parts):
        where = ".".join(parts[:depth]) or "the configuration"
        if isinstance(node, list | tuple):
            if not part.isdigit() or int(part) >= len(node):
                raise ConfigError(
                    f"--cfg-options {key}={value}: {where} is a list of {len(node)}; give an index from 0 to "
                    f"{len(node) - 1}"
                )
            node = node[int(part)]
        elif isinstance(node, dict | Config):
            if part not in node:
                is_top = depth == 0
                if depth == len(parts) - 1 and (is_top or "type" in node or part in _optional(where)):
                    return  # an optional argument, which its constructor checks
                raise ConfigError(f"--cfg-options {key}={value}: {where} has no key {part!r}{suggestion(part, node)}")
            node = node[part]
        else:
            raise ConfigError(f"--cfg-options {key}={value}: {where} is {node!r} and has no keys")


def _optional(where: str) -> set[str]:
    """Arguments that mmengine reads from a dict without a `type`."""
    if where.endswith("_dataloader"):
        return {*inspect.signature(DataLoader.__init__).parameters, "num_batch_per_epoch"}
    return set(inspect.signature(set_random_seed).parameters) if where == "randomness" else set()


def suggestion(key: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown key: the closest known one, or the first few."""
    close = difflib.get_close_matches(key, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(map(str, known))[:12])}"


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

    for key in cfg:
        cfg[key] = move(cfg[key])
