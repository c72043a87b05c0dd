"""Reads a configuration that comes with data (inside a checkpoint, in a folder of somebody else) and executes nothing.

The text is Python as mmengine writes it, because mmengine's inferencers read it; here a parser takes it apart. What
is built from it goes through `buildable`: registered types only, and no string that a constructor would execute.
"""

import ast
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import PurePath

import mmengine.registry
from mmengine.registry import Registry

from ..errors import ConfigError
from .quiet import quiet_imports

PACKAGES = ("arm_backbone", "arm_pretrain", "arm_toolkit", "mmdet", "mmseg", "mmpretrain")  # that it may import
SCOPES = ("mmengine", "mmdet", "mmseg", "mmpretrain")
OPERATORS = ("nms", "soft_nms", "RoIAlign", "RoIPool")  # found without a registry, by eval or getattr
# files that constructors of OpenMMLab or timm would unpickle
_UNSAFE_FILES = {".pkl", ".pickle", ".yaml", ".yml", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".npz"}


def parse_config(text: str, where: str) -> dict:
    """The keys of a configuration text.

    It may contain assignments to names, numbers, strings, True, False, None, lists, tuples, dicts and `dict(...)` with
    keywords.

    Args:
        where: name of the file that holds the text, for messages.

    Raises:
        ConfigError: for anything else; names the file and the line of the text.
    """
    try:
        return {_target(node, where): _literal(node.value, where) for node in ast.parse(text).body}
    except ConfigError:
        raise
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        raise ConfigError(f"{where}: line {line} of its configuration is not Python ({type(error).__name__})") from None


def _target(node: ast.stmt, where: str) -> str:
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
        if node.targets[0].id != "_base_":
            return node.targets[0].id
    raise _refusal(node, where)


def _literal(node: ast.expr, where: str) -> object:
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | None):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _literal(node.operand, where)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.List | ast.Tuple):
        values = [_literal(item, where) for item in node.elts]
        return values if isinstance(node, ast.List) else tuple(values)
    if isinstance(node, ast.Dict) and None not in node.keys:
        keys = [_literal(key, where) for key in node.keys]
        if all(isinstance(key, str | int | float) for key in keys):
            return dict(zip(keys, (_literal(value, where) for value in node.values)))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        if all(keyword.arg is not None for keyword in node.keywords):
            return {keyword.arg: _literal(keyword.value, where) for keyword in node.keywords}
    raise _refusal(node, where)


def _refusal(node: ast.AST, where: str) -> ConfigError:
    code = " ".join(ast.unparse(node).split())
    code = code if len(code) <= 60 else f"{code[:57]}..."
    return ConfigError(
        f"{where}: line {node.lineno} of its configuration, {code!r}, is more than values and dict(...); nothing was "
        "executed"
    )


def check_names(cfg: dict, imports: Iterable[str], where: str) -> None:
    """Check that a configuration imports only known packages, and names no type or scope that mmengine would import.

    Args:
        imports: its `custom_imports`.

    Raises:
        ConfigError: naming file, key and value.
    """
    for name in imports:
        if not isinstance(name, str) or name.split(".")[0] not in PACKAGES or not _is_dotted_name(name):
            raise ConfigError(
                f"{where}: its custom_imports name {name!r}; imported are only modules of {', '.join(PACKAGES)}"
            )
    for path, value in leaves(cfg):
        key = ".".join(map(str, path))
        if path[-1] in ("_scope_", "default_scope") and value not in (None, *SCOPES):
            raise ConfigError(f"{where}: {key}={value!r}: give one of {', '.join(SCOPES)}")
        if path[-1] == "type" and value is not None:
            *scope, name = value.split(".") if isinstance(value, str) else [value]
            known = not scope or (len(scope) == 1 and scope[0] in SCOPES)
            if not (known and isinstance(name, str) and name.isidentifier()):
                raise ConfigError(
                    f"{where}: {key}={value!r} is not the plain name of a registered type; mmengine would import it"
                )


def _is_dotted_name(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def buildable(part: dict, name: str, where: str, scope: str = "mmengine") -> dict:
    """A copy of a part of a configuration that can be built without executing anything that it names.

    Every `type` must be registered (import its modules first). Strings must not be expressions or files that a
    constructor would evaluate or unpickle; our own constructors read the `checkpoint` that they are given safely.
    `init_cfg` and `pretrained` become None: weights come from a file that is read safely.

    Args:
        part: e.g. the value of the key `model`.
        name: its key.
        where: name of the file that holds the configuration.
        scope: the scope that it will be built in (`default_scope` of a configuration).

    Raises:
        ConfigError: naming file, key and value.
    """
    part = _without_pretrained(part)
    check_names({name: part, "default_scope": scope}, (), where)
    known = registered(scope)
    for path, value in leaves(part):
        key = ".".join(map(str, (name, *path)))
        if not isinstance(value, str):
            continue
        if path[-1] == "type" and path[-2:-1] != ("separator",):  # its type is a word of our own constructor
            if value not in known and value not in OPERATORS:
                raise ConfigError(f"{where}: {key}={value!r} is not registered")
        elif "(" in value or "__" in value:
            raise ConfigError(f"{where}: {key}={value!r} looks like code; no part of a model needs that")
        elif PurePath(value).suffix.lower() in _UNSAFE_FILES and not _is_ours(part, path, known):
            raise ConfigError(f"{where}: {key}={value!r} is a file that could execute code when it is read")
    return part


def _without_pretrained(node: object) -> object:
    if isinstance(node, dict):
        return {key: None if key in ("init_cfg", "pretrained") else _without_pretrained(node[key]) for key in node}
    return type(node)(map(_without_pretrained, node)) if isinstance(node, list | tuple) else node


def _is_ours(part: dict, path: tuple, known: dict[str, object]) -> bool:
    """Whether a path leads to the `checkpoint` of one of our own types, which read it without executing code."""
    node = part
    for step in path[:-1]:
        node = node[step]
    kind = known.get(node.get("type")) if isinstance(node, dict) else None
    return path[-1] == "checkpoint" and getattr(kind, "__module__", "").split(".")[0] in PACKAGES[:3]


def registered(scope: str) -> dict[str, object]:
    """Name -> type, of every registry of mmengine, and under "SCOPE.NAME" of the packages that are imported.

    Args:
        scope: the one whose names need no "SCOPE." before them.
    """
    found: dict[str, object] = {}
    with quiet_imports():
        if scope != "mmengine":
            import_module(f"{scope}.registry")
        pending = [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]
        while pending:
            registry = pending.pop()
            registry.import_from_location()
            for name, kind in registry.module_dict.items():
                found[f"{registry.scope}.{name}"] = kind
                if registry.scope in ("mmengine", scope):
                    found[name] = kind
            pending += registry.children.values()
    return found


def leaves(node: object, path: tuple = ()) -> Iterator[tuple[tuple, object]]:
    """The values of nested dicts, lists and tuples with their paths; of a key `type` the value whatever it is."""
    if isinstance(node, dict | list | tuple) and path[-1:] != ("type",):
        for step, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(value, (*path, step))
    elif path:
        yield path, node
