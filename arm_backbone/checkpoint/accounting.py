"""Accounts for every tensor of a checkpoint and of a model, and describes what does not match."""

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, field

import torch

_SHOWN = 5  # names listed in an error


def misfit(
    expected: dict[str, torch.Size | None], given: dict[str, torch.Size | None], may_miss: Container = ()
) -> str:
    """What keeps tensors of the `given` shapes from being those `expected`; empty if nothing does."""
    missing = [name for name in expected if name not in given and name not in may_miss]
    extra = [name for name in given if name not in expected]
    reshaped = [
        f"{name} {tuple(shape)} for {tuple(expected[name])}"
        for name, shape in given.items()
        if name in expected and shape != expected[name]
    ]
    return "; ".join(
        f"{len(found)} of {total} tensors {what} ({some(found)})"
        for what, found, total in (
            ("of the model missing", missing, len(expected)),
            ("of the file unknown to the model", extra, len(given)),
            ("of another shape", reshaped, len(given)),
        )
        if found
    )


def some(names: list[str]) -> str:
    """The first few of many names, for messages."""
    return ", ".join(map(str, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")


@dataclass
class Accounting:
    """What became of every tensor, of the file and of the model.

    Attributes:
        used: target key -> how it was made ("copied", "one scan copied to 4", ...).
        dropped: source key -> reason.
        new: target key that the file does not provide -> reason.
    """

    used: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{count:5d} tensors {how}" for how, count in Counter(self.used.values()).items()]
        for title, table in (("dropped", self.dropped), ("new", self.new)):
            groups: dict[str, list[str]] = {}
            for key, reason in table.items():
                groups.setdefault(reason, []).append(key)
            for reason, keys in groups.items():
                shown = some(sorted({".".join(key.split(".")[:2]) for key in keys}))
                lines.append(f"{len(keys):5d} tensors {title}: {reason} ({shown})")
        return "\n".join(lines)
