"""Accounts for every tensor of a checkpoint and of a model, and describes those that do not match."""

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, field

import torch

_SHOWN = 5  # names listed in a message


def describe_mismatch(
    expected: dict[str, torch.Size | None], given: dict[str, torch.Size | None], may_miss: Container = ()
) -> str:
    """Missing, unexpected and reshaped tensors in words; "" if all match.

    Args:
        expected, given: shape of each tensor of the model and of the file, or None in both to compare names alone.
        may_miss: names that may be missing.
    """
    missing = [name for name in expected if name not in given and name not in may_miss]
    extra = [name for name in given if name not in expected]
    reshaped = [
        f"{name} {tuple(shape)}, not {tuple(expected[name])}"
        for name, shape in given.items()
        if name in expected and shape != expected[name]
    ]
    return "; ".join(
        f"{len(found)} of {total} tensors {what} ({shorten(found)})"
        for what, found, total in (
            ("of the model are missing", missing, len(expected)),
            ("of the file are unknown to the model", extra, len(given)),
            ("have another shape", reshaped, len(given)),
        )
        if found
    )


def describe_values(expected: dict[str, torch.Tensor], given: dict[str, torch.Tensor]) -> str:
    """Tensors of another type than the model's, or with values that are no finite numbers, in words; "" if none.

    Args:
        expected, given: tensors of the model and of the file by name; names that only one of them has do not count.
    """
    other_type, not_finite = [], []
    for name in (name for name in given if name in expected):
        tensor, floats = given[name], expected[name].is_floating_point()
        if tensor.is_floating_point() != floats or (tensor.dtype == torch.bool) != (expected[name].dtype == torch.bool):
            other_type.append(f"{name} {tensor.dtype}, not {expected[name].dtype}")
        elif floats and not tensor.is_meta:
            wrong = tensor.numel() - int(torch.isfinite(tensor).sum())
            if wrong:
                not_finite.append(f"{name} {wrong} of {tensor.numel()}")
    parts = []
    if other_type:
        parts.append(f"{len(other_type)} tensors have another type ({shorten(other_type)})")
    if not_finite:
        parts.append(f"{len(not_finite)} tensors hold NaN or infinite values ({shorten(not_finite)})")
    return "; ".join(parts)


def shorten(names: list[str]) -> str:
    """The first few of many names, comma-separated, for messages."""
    return ", ".join(map(str, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")


@dataclass
class Accounting:
    """What happened to every tensor of a file and of a model; `str()` gives a summary.

    Attributes:
        used: model key -> how its tensor was obtained ("copied", "one scan copied to 4", ...).
        dropped: file key -> reason why the model does not use it.
        new: model key -> reason why the file may lack it; the tensor keeps its initial value.
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
                shown = shorten(sorted({".".join(key.split(".")[:2]) for key in keys}))
                lines.append(f"{len(keys):5d} tensors {title}: {reason} ({shown})")
        return "\n".join(lines)
