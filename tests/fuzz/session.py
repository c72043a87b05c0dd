"""Runs mutated inputs one after the other and records what became of each.

A case is right if it passes, or if it stops with an error that a user can act on (`arm_toolkit.errors.user_errors`).
Everything else is a fault: another exception, a hang, a dead process, or an input that a check passed and that training
then refused.
"""

import io
import json
import random
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from mmengine.config import Config

from arm_toolkit.datasets.check_report import Report
from arm_toolkit.errors import one_line, user_errors
from tests.helpers.runs import train

TIME_LIMIT = 60  # seconds; a case takes at most a few


class Fault(Exception):
    """An input that was treated wrongly although nothing crashed."""


class Hang(BaseException):
    """A case ran longer than `TIME_LIMIT`. No Exception, so that no handler takes it for an error of the input."""


def run(case: Callable[[random.Random], tuple[str, str]], log: Path, seeds: Iterator[int], seconds: float) -> Counter:
    """Run cases until the time is over, and count how they ended.

    The log holds one JSON line when a case starts and one when it ends, so the last line names the input that killed
    the process. A later run continues after it.

    Args:
        case: makes a mutated input from a random generator and uses it; returns its description and "passes" or
            "named error".
        log: JSON lines; `seeds_after` continues from it.
        seeds: of the cases.
        seconds: of the whole run.
    """
    counts: Counter[str] = Counter()
    end = time.monotonic() + seconds
    with log.open("a") as file:
        for seed in seeds:
            if time.monotonic() > end:
                break
            print(json.dumps(dict(seed=seed)), file=file, flush=True)
            outcome, text = _outcome(case, seed)
            counts[outcome] += 1
            print(json.dumps(dict(seed=seed, outcome=outcome, text=text)), file=file, flush=True)
    return counts


def compare_with_check(what: str, report: Report, cfg: Config, folder: Path) -> tuple[str, str]:
    """Train on data that a check has looked at: what the check passes must train, and the reverse.

    Returns:
        what a case returns.

    Raises:
        Fault: if check and training disagree.
    """
    try:
        train(cfg, folder)
    except user_errors() as error:
        if report.ok:
            raise Fault(f"{what}: the check says ok, training says {error}") from error
        return f"{what}: {report.errors[0]}", "named error"
    if not report.ok:
        raise Fault(f"{what}: training goes on, the check says {report.errors[0]}")
    return what, "passes"


def quiet(cfg: Config) -> Config:
    """Make a training configuration fit for thousands of runs in one process; changes and returns it."""
    cfg.log_level = "ERROR"
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.default_hooks.checkpoint.update(interval=100, save_last=False)
    return cfg


def _outcome(case: Callable, seed: int) -> tuple[str, str]:
    try:
        with _time_limit(), redirect_stdout(io.StringIO()):
            text, outcome = case(random.Random(seed))
            return outcome, text
    except Hang:
        return "hang", f"longer than {TIME_LIMIT} s"
    except user_errors() as error:
        return "named error", one_line(error)
    except (Exception, SystemExit) as error:  # noqa: BLE001 what a fuzz run looks for
        return "fault", "".join(traceback.format_exception(error)[-6:])


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*_) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(TIME_LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def seeds_after(log: Path, first: int) -> Iterator[int]:
    """The seeds that a log does not contain yet, from `first` on."""
    done = [json.loads(line)["seed"] for line in log.read_text().splitlines()] if log.is_file() else []
    seed = max([first - 1, *done]) + 1
    while True:
        yield seed
        seed += 1


def dead(log: Path) -> list[int]:
    """Seeds of a log that started and never ended: they killed their process, or were interrupted."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    ended = {line["seed"] for line in lines if "outcome" in line}
    return sorted({line["seed"] for line in lines} - ended)
