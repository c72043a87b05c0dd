"""Looks at a configuration and the files below it as text, before they are executed: circles, keys without effect."""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError


@dataclass
class ConfigFile:
    """A configuration file.

    Attributes:
        assigned: names that it assigns.
        read: names that it reads, its own or those of its base files.
        is_dump: mmengine wrote it: everything in order, the helpers of the original too, and nothing read.
    """

    path: Path
    assigned: set[str]
    read: set[str]
    is_dump: bool


def config_files(path: str | Path, above: tuple[Path, ...] = ()) -> Iterator[ConfigFile]:
    """A configuration and all files that it inherits from, itself first. Files that cannot be read are omitted.

    Args:
        above: the files that inherit from this one.

    Raises:
        ConfigError: if the files inherit in a circle.
    """
    path = Path(path)
    resolved = path.resolve()
    if resolved in above:
        circle = " -> ".join(file.name for file in (*above[above.index(resolved) :], resolved))
        raise ConfigError(f"{above[0]}: _base_ leads in a circle: {circle}; remove one of these")
    try:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return  # reading it for real says why
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    base = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_base(node.value)]
    read = {node.id for node in names if isinstance(node.ctx, ast.Load)} | {node.attr for node in base}
    read |= {node.target.id for node in ast.walk(tree) if isinstance(node, ast.AugAssign) and _is_name(node.target)}
    read |= set(re.findall(r"\{\{\s*_base_\.(\w+)", text))
    assigned = [node.id for node in names if isinstance(node.ctx, ast.Store)]
    yield ConfigFile(path, set(assigned), read, read <= {"dict"} and assigned == sorted(assigned))
    for name in _bases(tree):
        if "::" not in name:  # a file of another package
            yield from config_files(path.parent / name, (*above, resolved))


def _is_name(node: ast.expr) -> bool:
    return isinstance(node, ast.Name)


def _is_base(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "_base_"


def _bases(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and _is_base(node.targets[0]):
            try:
                value = ast.literal_eval(node.value)
            except ValueError:
                return []
            return [name for name in ([value] if isinstance(value, str) else value) if isinstance(name, str)]
    return []


def without_effect(files: list[ConfigFile], keys: Iterable[str]) -> dict[str, Path]:
    """Of some keys, those that nothing reads after they get their value, and the file that sets them.

    None in a file that mmengine wrote: it has the helpers of the original, whose values are in their places already.

    Args:
        files: from `config_files`.
        keys: keys of the configuration that neither mmengine nor the toolkit reads.
    """
    result = {}
    for key in keys:
        above = next((index for index, file in enumerate(files) if key in file.assigned), None)
        if above is None or files[above].is_dump or any(key in file.read for file in files[: above + 1]):
            continue
        result[key] = files[above].path
    return result
