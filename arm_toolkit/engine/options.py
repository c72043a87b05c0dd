"""Applies `--cfg-options KEY=VALUE` to a configuration: every key must exist or be an argument, and text means itself.

How VALUE is read:

* A path, a prefix or a suffix (see `is_path`) is the text as it was typed, with its blanks, commas and leading zeros.
  `None` means None, as everywhere.
* Where the configuration has another text, a number, True, False, `[...]`, `(...)` or a quoted text is read as Python
  reads it; anything else is the text as it was typed.
* Elsewhere also `a,b,c` is a list, and the elements of lists need no quotes. A number is replaced by a number only.
"""

import ast
import difflib
import inspect
import re
from collections.abc import Iterable

from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner, set_random_seed
from torch.utils.data import DataLoader

from ..errors import ConfigError

RUNNER_KEYS = frozenset(inspect.signature(Runner.__init__).parameters) - {"self", "cfg"}
# keys that mmengine, mmdet or our tools read in addition to the Runner's arguments
OTHER_KEYS = frozenset(
    "compile custom_imports data_root default_scope find_unused_parameters model_wrapper_cfg sync_bn tta_model "
    "tta_pipeline".split()
)
_PATHS = frozenset("checkpoint file filename img load_from path prefix root seg suffix".split())
_PATH_ENDS = ("_dir", "_file", "_path", "_prefix", "_root", "_suffix")
_TEXT_OR_NUMBER = frozenset({"loss_scale"})  # "dynamic" or a number
_TEXT_OR_BOOL = {"with_cp", "pretrained"}  # "selective"; a path
_ABSENT = object()


def apply_options(cfg: Config, options: dict, path: str) -> None:
    """Change a configuration in place.

    Args:
        options: values by dotted key. Text is read as described above, other values are taken as they are. The key
            data_root replaces the configuration's data_root wherever a path starts with it.
        path: name of the configuration, for messages.

    Raises:
        ConfigError: naming key and value, if the key does not exist, or the value cannot stand there.
    """
    for key, value in options.items():
        if key == "data_root":
            _move_data_root(cfg, str(value), path)
            continue
        current = _current(cfg, key, value)
        typed = read_value(key, value, current) if isinstance(value, str) else value
        _check_kind(key, value, typed, current)
        _set(cfg, key.split("."), typed)


def is_path(key: str) -> bool:
    """Whether the value of a dotted key is a path, or a part of paths."""
    last = key.split(".")[-1]
    return last in _PATHS or last.endswith(_PATH_ENDS)


def read_value(key: str, text: str, current: object = None) -> object:
    """The value of a typed text, by the rules of this module.

    Args:
        current: the value that it replaces, None if there is none.
    """
    if text == "None":
        return None
    if is_path(key) and not isinstance(current, list | tuple | dict):
        return text
    value = _python_value(text)
    if value is not _ABSENT:
        return value
    return text if isinstance(current, str) else _loose_value(text)


def _python_value(text: str) -> object:
    """A number, text, truth value, list, tuple or dict written in Python; `_ABSENT` for anything else."""
    stripped = text.strip()
    if stripped.lower() in ("true", "false"):
        return stripped.lower() == "true"
    if re.fullmatch(r"[+-]?(inf|nan)", stripped):
        return float(stripped)
    try:
        value = ast.literal_eval(stripped)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return _ABSENT
    if isinstance(value, tuple) and not stripped.startswith("("):
        return _ABSENT  # 1,2
    return value if isinstance(value, str | int | float | list | tuple | dict | None) else _ABSENT


def _loose_value(text: str) -> object:
    """Like `_python_value`, but with lists without brackets, and texts without quotes."""
    value = _python_value(text)
    if value is not _ABSENT:
        return value
    stripped = text.strip()
    for kind, (opening, closing) in ((list, "[]"), (tuple, "()")):
        if stripped.startswith(opening) and stripped.endswith(closing):
            return kind(map(_loose_value, _elements(stripped[1:-1])))
    elements = _elements(text)
    return list(map(_loose_value, elements)) if len(elements) > 1 else text


def _elements(text: str) -> list[str]:
    """The parts between the commas that are in no brackets, without blanks at their ends."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "[(") - (char in "])")
        if char == "," and not depth:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() if len(parts) > 1 else part for part in parts if part.strip()]


def _current(cfg: Config, key: str, value: object) -> object:
    """The value at a key, or `_ABSENT` for an argument that a constructor may take."""
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
                if part and depth == len(parts) - 1 and (is_top or "type" in node or part in _optional(where)):
                    return _ABSENT  # an optional argument, which its constructor checks
                raise ConfigError(f"--cfg-options {key}={value}: {where} has no key {part!r}{suggestion(part, node)}")
            node = node[part]
        else:
            raise ConfigError(f"--cfg-options {key}={value}: {where} is {node!r} and has no keys")
    return node


def _optional(where: str) -> set[str]:
    """Arguments that mmengine reads from a dict without a `type`."""
    if where.endswith("_dataloader"):
        return {*inspect.signature(DataLoader.__init__).parameters, "num_batch_per_epoch"}
    return set(inspect.signature(set_random_seed).parameters) if where == "randomness" else set()


def _check_kind(key: str, value: object, typed: object, current: object) -> None:
    """Refuse text in place of a number or of True or False, and one value in place of a dict or a list of dicts."""
    is_number = isinstance(current, int | float) and not isinstance(current, bool)
    if is_number and isinstance(typed, str) and key.split(".")[-1] not in _TEXT_OR_NUMBER:
        raise ConfigError(f"--cfg-options {key}={value}: {key} is {current!r}; give a number")
    is_bool = typed in (None, False, True)  # 0 and 1 are equal to the last two
    if isinstance(current, bool) and not is_bool and key.split(".")[-1] not in _TEXT_OR_BOOL:
        raise ConfigError(f"--cfg-options {key}={value}: {key} is {current}; give True or False")
    is_list = isinstance(current, list | tuple) and len(current) and all(isinstance(i, int | float) for i in current)
    if is_list and isinstance(typed, str):
        raise ConfigError(f"--cfg-options {key}={value}: {key} is {current!r}; give numbers")
    is_part = isinstance(current, dict) and ("type" in current or "." not in key)
    is_part |= isinstance(current, list) and any(isinstance(item, dict) for item in current)
    if is_part and not isinstance(typed, dict | list | tuple | None):
        keys = list(current) if isinstance(current, dict) else range(len(current))
        raise ConfigError(f"--cfg-options {key}={value}: {key} has parts; set one, such as {key}.{keys[0]}, or None")


def _set(cfg: Config, parts: list[str], value: object) -> None:
    node: object = cfg
    for depth, part in enumerate(parts):
        if isinstance(node, tuple):
            where = ".".join(parts[:depth])
            raise ConfigError(f"--cfg-options {'.'.join(parts)}={value}: {where} is {node}; give it as a whole")
        step = int(part) if isinstance(node, list) else part
        if depth == len(parts) - 1:
            node[step] = ConfigDict(value) if isinstance(value, dict) else value
        else:
            node = node[step]


def suggestion(key: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown key: the closest known one, or the first few."""
    close = difflib.get_close_matches(key, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(map(str, known))[:12])}"


def _move_data_root(cfg: Config, new: str, path: str) -> None:
    old = cfg.get("data_root")
    if not old:
        raise ConfigError(f"--cfg-options data_root={new}: {path} has no data_root")
    if not new.strip():
        raise ConfigError(f"--cfg-options data_root={new}: give a folder")
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
