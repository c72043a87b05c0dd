"""Finds the metrics of a checkpoint in the logs of its run."""

import json
import math
import re
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path

_OTHER = re.compile(r"data_time|time|images_per_s|memory|step|position/.*")  # what is logged beside metrics


@dataclass(frozen=True)
class Metrics:
    """The metrics of one checkpoint, and the log of its run.

    Attributes:
        values: metric -> value, as tools/train.py and tools/test.py log them: COCO's AP as a fraction, mIoU and
            accuracies in percent. Empty if they are not known.
        source: where they come from, in words; why they are not known.
        log: lines of the log, numbers only.
    """

    values: dict[str, float] = field(default_factory=dict)
    source: str = "not known: the folder of the checkpoint has no log of an evaluation of it"
    log: list[dict[str, float]] = field(default_factory=list)


def find_metrics(checkpoint: Path, meta: dict, by_epoch: bool) -> Metrics:
    """The metrics of a checkpoint: of its last test with tools/test.py, else of the validation at its step.

    Args:
        checkpoint: file in the work dir of its run.
        meta: the checkpoint's `meta`.
        by_epoch: whether the run counts epochs, otherwise iterations.
    """
    work_dir = checkpoint.parent
    log = [line for file in sorted(work_dir.glob("*/vis_data/scalars.json")) for line in _read_lines(file)]
    for results in sorted((work_dir / "test").glob("*/*.json"), reverse=True):
        values = _values(_read_object(results))
        if values and _tested(results) == checkpoint.name:
            return Metrics(values, "evaluation with tools/test.py", log)
    unit = "epoch" if by_epoch else "iter"
    step = _step(checkpoint.name, unit, meta)
    found = [line for line in log if "iter" not in line and line.get("step") == step and _values(line)]
    if not found or step is None:
        return Metrics(log=log)
    return Metrics(_values(found[-1]), f"validation at {'epoch' if by_epoch else 'iteration'} {step}", log)


def _step(name: str, unit: str, meta: dict) -> int | None:
    """Of a `best_*.pth` mmengine stores the iteration plus one; the file's name is right."""
    named = re.search(rf"{unit}_(\d+)\.\w+$", name)
    step = int(named[1]) if named else meta.get(unit)
    return step if isinstance(step, int) else None


def _read_lines(file: Path) -> list[dict[str, float]]:
    lines = []
    for text in file.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # cut off when the run was killed
            continue
        if isinstance(line, dict):
            lines.append({key: value for key, value in line.items() if _is_number(value)})
    return [line for line in lines if line]


def _read_object(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(errors="replace"))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _values(line: dict) -> dict[str, float]:
    """The metrics in a line: AP below 0 is COCO's sign for an undefined one."""
    return {
        key: value
        for key, value in line.items()
        if not _OTHER.fullmatch(key) and _is_number(value) and not ("AP" in key and value < 0)
    }


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _tested(results: Path) -> str | None:
    """Name of the checkpoint that a test loaded, from the log beside its results."""
    found = [
        name
        for log in results.parent.glob("*.log")
        for name in re.findall(r"tensors of the model loaded from (.+)$", log.read_text(errors="replace"), re.M)
    ]
    return Path(found[-1].strip()).name if found else None
