"""Loads configurations, applies overrides from the command line, and translates the names of moved modules."""

import difflib
import os
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from ..errors import ConfigError, one_line
from .arguments import check_config_path
from .config_files import ConfigFile, config_files, without_effect
from .config_text import check_names, parse_config
from .options import OTHER_KEYS, RUNNER_KEYS, apply_options
from .quiet import quiet_imports
from .structure import check_structure

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
    "arm_toolkit.finite": ("arm_toolkit.engine.finite_hook",),
    "arm_toolkit.engine.finite_loss_hook": ("arm_toolkit.engine.finite_hook",),
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
        options: values by dotted key, see `options.apply_options`. A key must exist, or be an optional argument: of the
            Runner, of a data loader, or of a dict with a `type`, whose constructor then checks it.

    Raises:
        ConfigError: naming the file or key, the value and the remedy.
    """
    check_config_path(path)
    files = list(config_files(path))
    try:
        cfg = Config.fromfile(path, import_custom_modules=False)
    except (Exception, SystemExit) as error:  # noqa: BLE001 a configuration is code that can raise anything
        what = "it calls sys.exit" if isinstance(error, SystemExit) else one_line(error)
        raise ConfigError(f"configuration {path} cannot be read: {what}") from error
    for name in _custom_imports(cfg, path):
        if name in MOVED:
            names = ", ".join(f'"{new}"' for new in MOVED[name])
            raise ConfigError(f'{path}: custom_imports has "{name}", which has moved; write {names} in its place')
    _import(cfg, path)
    _check_top_level(cfg, path, files)
    if options:
        apply_options(cfg, options, path)
        _custom_imports(cfg, path)
        _import(cfg, path)  # those that an option adds
    check_structure(cfg)
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
    return _with_imports(lambda: _execute(text) if trust else Config(parse_config(text, where)), where, trust)


def config_from_data(data: dict, where: str) -> Config:
    """A configuration that comes as data, as in a published folder; imports its `custom_imports`.

    As with `config_from_text`, only modules of known packages are imported, and what is built from it goes through
    `config_text.buildable`.

    Raises:
        ConfigError: naming file, key and value.
    """
    return _with_imports(lambda: Config(data), where)


def _with_imports(read: Callable[[], Config], where: str, trust: bool = False) -> Config:
    try:
        cfg = read()
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
    """The modules that `custom_imports` names, which becomes dict(imports=[...], ...) if it is None or names one."""
    imports = cfg.get("custom_imports")
    imports = {} if imports is None else imports
    names = imports.get("imports") if isinstance(imports, dict) else imports
    names = [] if names is None else [names] if isinstance(names, str) else names
    wrong = not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names)
    if wrong or not isinstance(imports, dict):
        raise ConfigError(f"{where}: custom_imports={imports!r}: give dict(imports=[MODULE, ...])")
    cfg.custom_imports = dict(allow_failed_imports=False) | imports | dict(imports=list(names))
    return list(names)


def _import(cfg: Config, where: str) -> None:
    try:
        with quiet_imports():
            import_modules_from_strings(**cfg.custom_imports)
            if cfg.get("default_scope") in ("mmdet", "mmseg"):
                import_module(f"{cfg.default_scope}.datasets")  # the registry would import it later
    except (Exception, SystemExit) as error:  # noqa: BLE001 a module can raise anything when imported
        raise ConfigError(f"{where}: custom_imports: {one_line(error)}") from error


def _check_top_level(cfg: Config, path: str, files: list[ConfigFile]) -> None:
    """Refuse keys that resemble known ones, warn of others that nothing reads, and require a model."""
    known = RUNNER_KEYS | OTHER_KEYS
    unknown = [key for key in cfg if key not in known]
    for key in unknown:
        close = difflib.get_close_matches(key, known, 1, cutoff=0.9)
        if close:
            raise ConfigError(f"{path} has the unknown key {key!r}; did you mean {close[0]!r}?")
    if os.environ.get("RANK", "0") == "0":
        for key, file in without_effect(files, unknown).items():
            print(f"warning: {file}: nothing reads the key {key!r}; it has no effect")
    if not isinstance(cfg.get("model"), dict):
        raise ConfigError(f"{path} has no key model; give a complete configuration, or inherit from one with _base_")
