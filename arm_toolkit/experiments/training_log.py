"""Reads what a training logged: mmengine's scalars.json of all its parts, as one training."""

import json
from dataclasses import dataclass, field
from pathlib import Path

Points = list[tuple[int, float]]  # pairs of training step and value
NOT_METRICS = {"step", "iter", "epoch", "time", "data_time"}


@dataclass
class TrainingLog:
    """The log of a training, also of one that was resumed.

    Steps that a resumed training repeated count once, with what was logged last.

    Attributes:
        train: values logged while training, by name ("loss", "lr", ...).
        val: results of validations, by name ("mIoU", "coco/bbox_mAP", ...). Where the log gives an epoch, the step is
            that of the last values logged before.
        epoch: the last epoch that the log names, counted from 1; None if it names none.
        resumed: the steps at which the training was resumed.
        seconds: time of the training steps, without validation and start; None if it is not logged.
        damaged: files with lines, other than the last, that cannot be read.
    """

    train: dict[str, Points] = field(default_factory=dict)
    val: dict[str, Points] = field(default_factory=dict)
    epoch: int | None = None
    resumed: list[int] = field(default_factory=list)
    seconds: float | None = None
    damaged: list[Path] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """The last step that was logged, 0 if none was."""
        return max((points[-1][0] for points in self.train.values() if points), default=0)


def read_log(folder: Path) -> TrainingLog:
    """The log of the training in a work directory; empty if there is none."""
    log = TrainingLog()
    train: dict[str, dict[int, float]] = {}
    val: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("*/vis_data/scalars.json")):
        texts = path.read_text(errors="replace").splitlines()
        lines = [_parse(text) for text in texts]
        if any(not line and text.strip() for line, text in zip(lines[:-1], texts)):
            log.damaged.append(path)
        lines = [line for line in lines if line]
        first = next((line["step"] for line in lines if _is_training(line)), None)
        if first is None:
            continue
        if train:
            log.resumed.append(first)
        for points in (*train.values(), *val.values()):  # what follows is repeated
            for step in [step for step in points if step >= first]:
                del points[step]
        last = max((step for points in train.values() for step in points), default=0)
        for line in lines:
            if _is_training(line):
                last = line["step"]
                log.epoch = line.get("epoch", log.epoch)
            for name, value in line.items():
                if name not in NOT_METRICS or (name == "time" and _is_training(line)):
                    of = train if _is_training(line) else val
                    of.setdefault(name, {})[max(last, line["step"])] = value
    log.train = {name: sorted(points.items()) for name, points in train.items() if points}
    log.val = {name: sorted(points.items()) for name, points in val.items() if points}
    log.seconds = _seconds(log.train.pop("time", []))
    return log


def _is_training(line: dict) -> bool:
    return "loss" in line or "lr" in line


def _parse(text: str) -> dict:
    """The numbers of a line; {} if it is empty, damaged, or cut off because the run was killed."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        return {}
    return {name: value for name, value in line.items() if type(value) in (int, float)}


def _seconds(times: Points) -> float | None:
    """The sum over all steps of the logged time per step, which is a mean over the steps before it."""
    total, before = 0.0, 0
    for step, seconds in times:
        total += seconds * (step - before)
        before = step
    return total or None
