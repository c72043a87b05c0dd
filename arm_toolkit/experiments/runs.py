"""Reads a run of training, and its evaluation, from its work directory. Nothing in it is executed."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from arm_backbone.checkpoint.files import model_state, read_checkpoint

from ..engine.config_text import parse_config
from ..engine.structure import TASKS
from ..engine.work_dir_lock import refuse_second_run
from ..errors import ConfigError, one_line, user_errors, wants_traceback
from .files import read_json
from .training_log import Points, TrainingLog, read_log

MEASURES = {"box AP": "coco/bbox_mAP", "mask AP": "coco/segm_mAP", "mIoU": "mIoU"}  # shown name -> key in the results
MEASURES |= {"top-1 accuracy": "accuracy/top1", "top-5 accuracy": "accuracy/top5", "pixel accuracy": "aAcc"}


@dataclass(frozen=True)
class Run:
    """One training and its evaluation; a missing part is None or empty.

    Attributes:
        name: what the report calls it.
        metrics: results of the newest test: AP as a fraction, mIoU and accuracy in percent, as tools/test.py writes
            them.
        seconds: wall time of the training.
        parameters: number of values in the checkpoint, of the whole model and of its backbone.
        log: what the training logged.
        config: keys of the configuration that it ran with.
        checkpoint: the last checkpoint.
        running: whether the training has not ended.
        faults: a sentence for each part that cannot be read.
    """

    folder: Path
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    parameters: tuple[int, int] | None = None
    log: TrainingLog = field(default_factory=TrainingLog)
    config: dict = field(default_factory=dict)
    checkpoint: Path | None = None
    running: bool = False
    faults: list[str] = field(default_factory=list)
    name: str = ""

    @property
    def losses(self) -> Points:
        """Pairs of step and loss."""
        return self.log.train.get("loss", [])

    @property
    def task(self) -> str:
        """ "detection", "segmentation", "classification" or "pretraining"; "" if nothing tells."""
        scope = self.config.get("default_scope")
        if isinstance(scope, str) and scope in TASKS:
            return TASKS[scope]
        if self.config:
            return "classification" if self.settings("test_dataloader") else "pretraining"
        names = " ".join((*self.log.train, *self.log.val, *self.metrics))
        signs = dict(detection="coco/|loss_rpn", segmentation="mIoU|decode", classification="top1")
        return next((task for task, sign in signs.items() if re.search(sign, names)), "")

    @property
    def test_set(self) -> dict:
        """The configuration of the data set that the run is tested on, {} if there is none."""
        return self.settings("test_dataloader", "dataset")

    def settings(self, *keys: str) -> dict:
        """A part of the configuration, {} if there is none."""
        part: object = self.config
        for key in keys:
            part = part.get(key) if isinstance(part, dict) else None
        return part if isinstance(part, dict) else {}

    def points(self, measure: str) -> float | None:
        """One of `MEASURES` of the newest test in points (0..100), rounded to one decimal as the report shows it."""
        return to_points(measure, self.metrics.get(MEASURES[measure]))


def to_points(measure: str, value: float | None) -> float | None:
    """A logged value of one of `MEASURES` in points, None if it is undefined."""
    if value is None or not value >= 0:  # COCO writes -1 for an undefined AP
        return None
    return round(100 * value if "AP" in measure else value, 1)


def read_run(folder: Path, seconds: float | None = None) -> Run:
    """The run in a work directory.

    Args:
        seconds: wall time of the training, if it was measured.

    Raises:
        DataError: if the results of its test are incomplete.
        CheckpointError: if its checkpoint is broken.
    """
    return Run(folder, seconds=seconds, log=read_log(folder), **_results(folder), **_weights(folder))


def inspect_run(folder: Path, name: str) -> Run:
    """The run in a work directory; what cannot be read is named in `faults`."""
    faults: list[str] = []
    parts: dict = {}
    with noted(faults, f"the log in {folder}"):
        parts["log"] = read_log(folder)
        faults += [f"{path} has lines that cannot be read; they are left out" for path in parts["log"].damaged]
    with noted(faults, f"the results of the newest test in {folder}"):
        parts |= _results(folder)
    with noted(faults, f"the last checkpoint in {folder}"):
        parts |= _weights(folder)
    with noted(faults, f"the configuration in {folder}"):
        parts["config"] = read_config(folder)
    log = parts.get("log", TrainingLog())
    return Run(folder, name=name, seconds=log.seconds, running=_is_running(folder), faults=faults, **parts)


@contextmanager
def noted(faults: list[str], what: str) -> Iterator[None]:
    """Turn a user's error, or one that the content of a file may cause, into a sentence in `faults`.

    Args:
        what: is read.
    """
    try:
        yield
    except user_errors() as error:
        faults.append(one_line(error))
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        if wants_traceback():
            raise
        faults.append(f"{what} cannot be read ({type(error).__name__}: {one_line(error)}); ARM_TRACEBACK=1 shows where")


def _results(folder: Path) -> dict:
    """The results of the newest test, whose work dir is that of the training or its folder test/."""
    found = [path for pattern in ("*/*.json", "test/*/*.json") for path in folder.glob(pattern)]
    found = [path for path in found if path.stem == path.parent.name]
    content = read_json(max(found, key=lambda path: path.name)) if found else {}
    values = content.items() if isinstance(content, dict) else ()
    return dict(metrics={name: value for name, value in values if type(value) in (int, float)})


def _weights(folder: Path) -> dict:
    path = checkpoint_path(folder)
    if path is None:
        return {}
    return dict(checkpoint=path, parameters=count_parameters(model_state(read_checkpoint(path, mmap=True), where=path)))


def _is_running(folder: Path) -> bool:
    try:
        refuse_second_run(folder)
    except ConfigError:
        return True
    except OSError:
        pass  # a lock of somebody else that cannot be opened says nothing
    return False


def read_config(folder: Path) -> dict:
    """The keys of the configuration that a run saved, {} if there is none. The file is parsed, not executed.

    Raises:
        ConfigError: if it holds more than values.
    """
    logged = [path.parent / "config.py" for path in sorted(folder.glob("*/vis_data/scalars.json"), reverse=True)]
    path = next((path for path in logged if path.is_file()), config_path(folder))
    return parse_config(path.read_text(encoding="utf-8", errors="replace"), str(path)) if path is not None else {}


def config_path(folder: Path) -> Path | None:
    """The configuration file that a run saved in its work directory, or None."""
    return next(iter(sorted(folder.glob("*.py"))), None)


def checkpoint_path(folder: Path) -> Path | None:
    """The last checkpoint of a work directory, found even if the directory was moved, or None."""
    last = folder / "last_checkpoint"
    path = folder / Path(last.read_text(errors="replace").strip()).name if last.is_file() else None
    return path if path and path.is_file() else None


def count_parameters(state: dict[str, Tensor]) -> tuple[int, int]:
    """Number of values in all tensors of a model, and in those of its backbone."""
    backbone = sum(tensor.numel() for key, tensor in state.items() if key.startswith("backbone."))
    return sum(tensor.numel() for tensor in state.values()), backbone


def read_losses(folder: Path) -> Points:
    """Pairs of step and loss. Steps that a resumed training repeated count once, with their last loss."""
    return read_log(folder).train.get("loss", [])
