"""Finds the settings in which runs differ, from the configurations that they saved."""

from collections.abc import Iterator, Sequence

# where and how a run happened, not what was trained
_LEFT_OUT = {"work_dir", "launcher", "resume", "log_level", "env_cfg", "visualizer", "vis_backends", "log_processor"}
_LEFT_OUT |= {"custom_imports", "default_hooks", "tta_pipeline", "tta_model"}
_ABSENT = object()
LONGEST = 60  # characters of a value


def differing_settings(configs: Sequence[dict]) -> list[tuple[str, ...]]:
    """Rows of a table: a key with dots, and its value in each configuration, "–" where it is absent.

    Keys whose values are the same in every configuration share a row, as those of a schedule's length do.
    """
    rows: dict[tuple[str, ...], list[str]] = {}
    configs = [{key: value for key, value in config.items() if key not in _LEFT_OUT} for config in configs]
    for path, values in _differences(configs, ()):
        rows.setdefault(tuple(map(_shown, values)), []).append(".".join(map(str, path)))
    return [(_together(keys), *values) for values, keys in rows.items()]


def _differences(nodes: Sequence[object], path: tuple) -> Iterator[tuple[tuple, Sequence[object]]]:
    """The innermost keys and positions whose values are not all equal."""
    if all(node == nodes[0] for node in nodes[1:]):
        return
    there = [node for node in nodes if node is not _ABSENT]
    if len(there) > 1 and all(isinstance(node, dict) for node in there):
        steps = list(dict.fromkeys(key for node in there for key in node))
        parts = [{} if node is _ABSENT else node for node in nodes]
        for step in steps:
            yield from _differences([part.get(step, _ABSENT) for part in parts], (*path, step))
    elif len(there) == len(nodes) and _are_long(nodes):
        for position, values in enumerate(zip(*nodes)):
            yield from _differences(values, (*path, position))
    else:
        yield path, nodes


def _are_long(nodes: Sequence[object]) -> bool:
    """Whether these are lists of dicts, all of one length: pipelines, schedules."""
    lists = all(isinstance(node, list | tuple) for node in nodes)
    return (
        lists and len({len(node) for node in nodes}) == 1 and all(isinstance(x, dict) for node in nodes for x in node)
    )


def _shown(value: object) -> str:
    if value is _ABSENT:
        return "–"
    if isinstance(value, dict) and isinstance(value.get("type"), str):
        value = f"{value['type']}({', '.join(f'{key}={inner!r}' for key, inner in value.items() if key != 'type')})"
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _together(keys: Sequence[str]) -> str:
    """Keys of equal values: the first two, and how many more."""
    more = f" and {len(keys) - 2} more" if len(keys) > 2 else ""
    return "\n".join(f"`{key}`" for key in keys[:2]) + more
