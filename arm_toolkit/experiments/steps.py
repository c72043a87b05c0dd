"""Runs a plan of commands that depend on each other, two at a time on a CPU; skips finished ones."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch

from arm_backbone.checkpoint.writing import make_folder, replacing, write_errors

from ..errors import ConfigError
from ..machine import available_cores, cpu_multiplies_bfloat16
from ..parent import ENDS_WITH_PARENT

ROOT = Path(__file__).resolve().parents[2]
PROGRESS_INTERVAL = 20  # seconds between two progress lines
FASTER = "@faster"  # in a command: --amp where that is faster, else nothing


@dataclass(frozen=True)
class Step:
    """One command of a plan.

    A finished step runs again if its command, a file that it reads, or a step that it depends on has changed.

    Attributes:
        name: also the name of its log file.
        command: arguments of `python`. Python files of this repository are relative to its root, other paths to the
            current folder. `@WORK_DIR` stands for the last checkpoint in that folder, and `FASTER` for a precision.
        after: names of the steps that it depends on.
        makes: folder that it writes; deleted before the step runs again.
        reads: files whose content determines the result.
        alone: whether it gets all cores; no other step runs beside it.
    """

    name: str
    command: tuple[str, ...]
    after: tuple[str, ...] = ()
    makes: Path | None = None
    reads: tuple[Path, ...] = ()
    alone: bool = False


class Spent(NamedTuple):
    """The cost of one run of a step.

    Attributes:
        seconds: wall time.
        cpu_seconds: summed over all cores, including start-up; less affected by other jobs than the wall time.
        run: identifies this run among all runs of the step.
    """

    seconds: float
    cpu_seconds: float
    run: str


def precision(folder: Path) -> list[str]:
    """bfloat16 where the processor multiplies it faster: it saves a fifth to a third of the time.

    It is decided once for all steps in a folder, and written there: a second trial may decide otherwise.
    """
    record = folder / "precision.txt"
    if not record.is_file():
        faster = not torch.cuda.is_available() and cpu_multiplies_bfloat16()
        make_folder(folder)
        with replacing(record) as partial:
            partial.write_text("--amp\n" if faster else "\n")
    return record.read_text().split()


def run_steps(steps: list[Step], folder: Path) -> dict[str, Spent]:
    """Run all steps, each after those that it depends on; return the cost of each by name.

    Of the steps that can start, the first one in the list does.

    Args:
        folder: receives logs/, done/ with a record of each finished step, and precision.txt.

    Raises:
        ConfigError: if a step fails, with the end of its log; steps already running are finished first.
        WriteError: if a log or a record cannot be written.
    """
    cores = available_cores()
    lanes = 1 if torch.cuda.is_available() else max(1, min(2, cores))
    waiting, running, spent = list(steps), {}, {}
    if any(FASTER in step.command for step in steps):
        precision(folder)  # decided before two steps ask for it at once
    start = time.perf_counter()
    with ThreadPoolExecutor(lanes) as pool:
        while waiting or running:
            for step in [s for s in waiting if all(n in spent for n in s.after)]:
                together = [*running.values(), step]
                if len(together) > (1 if any(s.alone for s in together) else lanes):
                    break
                waiting.remove(step)
                threads = cores if step.alone else max(1, cores // lanes)
                future: Future = pool.submit(_run, step, folder, threads, dict(spent))
                running[future] = step
            finished, _ = wait(running, timeout=PROGRESS_INTERVAL, return_when=FIRST_COMPLETED)
            clock = f"[{int(time.perf_counter() - start) // 60:2d}:{int(time.perf_counter() - start) % 60:02d}]"
            if not finished:
                print(f"{clock} {_progress(folder, [s.name for s in running.values()])}", flush=True)
            for future in finished:
                step = running.pop(future)
                spent[step.name] = future.result()
                took = f"{spent[step.name].seconds:.0f} s"
                print(f"{clock} {len(spent)}/{len(steps)} {step.name}: done in {took}", flush=True)
    return spent


def finished_steps(folder: Path) -> dict[str, Spent]:
    """The cost of each finished step in this folder, by name."""
    records = {path.stem: _read_record(path) for path in sorted((folder / "done").glob("*.json"))}
    return {name: record[1] for name, record in records.items() if record is not None}


def _run(step: Step, folder: Path, threads: int, before: dict[str, Spent]) -> Spent:
    """Run a step, with its output in logs/NAME.log, unless it has finished with the same inputs; return its cost."""
    done = folder / "done" / f"{step.name}.json"
    inputs = dict(
        command=list(step.command),
        after={name: before[name].run for name in step.after},
        reads={str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in step.reads},
    )
    record = _read_record(done)
    if record is not None and record[0] == inputs:
        return record[1]
    words = (precision(folder) if word == FASTER else [_resolve(word)] for word in step.command)
    command = [sys.executable, *chain.from_iterable(words)]
    if step.makes is not None and step.makes.exists():
        shutil.rmtree(step.makes)
    log = folder / "logs" / f"{step.name}.log"
    make_folder(log.parent)
    start = time.perf_counter()
    with write_errors(log, log), log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), ENDS_WITH_PARENT: str(os.getpid())},
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        with write_errors(log, log), log.open("a") as output:  # a step that a full disk stopped cannot log that itself
            output.write(f"exit status {process.returncode}\n")
        tail = "\n".join(log.read_text().splitlines()[-5:])
        raise ConfigError(f"step {step.name} failed, see {log}:\n{tail}")
    spent = Spent(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, f"{time.time_ns():x}")
    with replacing(done) as partial:
        partial.write_text(json.dumps(dict(inputs=inputs, spent=spent._asdict())))
    return spent


def _read_record(path: Path) -> tuple[dict, Spent] | None:
    """Inputs and cost of a finished step; None, so that the step runs again, if the record is missing or damaged."""
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
        return record["inputs"], Spent(**record["spent"])
    except (ValueError, TypeError, KeyError):
        print(f"{path} is not a complete record; the step counts as unfinished", flush=True)
        return None


def _resolve(argument: str) -> str:
    if argument.startswith("@"):
        return (Path(argument[1:]) / "last_checkpoint").read_text().strip()
    in_repository = argument.endswith(".py") and (ROOT / argument).is_file()
    return str(ROOT / argument) if in_repository else argument


def _progress(folder: Path, names: list[str]) -> str:
    """The latest training line of each running step, shortened."""
    parts = []
    for name in names:
        log = folder / "logs" / f"{name}.log"
        lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
        line = next((x for x in reversed(lines) if "(train)" in x or "(test)" in x), "")
        words = line.split(" - INFO - ")[-1].split()
        shown = " ".join(words[: next((i for i, w in enumerate(words) if w.endswith("lr:")), 4)])
        loss = next((f", loss {words[i + 1]}" for i, w in enumerate(words) if w == "loss:"), "")
        parts.append(f"{name} {shown}{loss}".strip())
    return " | ".join(parts)
