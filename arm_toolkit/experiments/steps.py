"""A plan of tools to run: steps that wait for each other, finished ones skipped, two at a time on a CPU."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from ..errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SHOW_EVERY = 20  # seconds between two lines about what is running


@dataclass(frozen=True)
class Step:
    """One tool to run.

    Attributes:
        name: also names its log file.
        command: arguments after `python`: files of this repository relative to its root, all others to the current
            folder; `@WORK_DIR` stands for the newest checkpoint in there.
        after: steps that must be done first.
        makes: folder that it makes, removed before it starts again.
        reads: files whose content decides what it makes.

    A finished step is run again when its command, a file that it reads, or a step before it has changed.
    """

    name: str
    command: tuple[str, ...]
    after: tuple[str, ...] = ()
    makes: Path | None = None
    reads: tuple[Path, ...] = ()


class Spent(NamedTuple):
    """What one run of a step took.

    Attributes:
        seconds: wall time.
        cpu_seconds: of all its cores together, its start included; other jobs on the machine lengthen it less.
        run: tells this run from others of the step.
    """

    seconds: float
    cpu_seconds: float
    run: str


def _resolve(argument: str) -> str:
    if argument.startswith("@"):
        return (Path(argument[1:]) / "last_checkpoint").read_text().strip()
    in_repository = argument.endswith(".py") and (ROOT / argument).is_file()
    return str(ROOT / argument) if in_repository else argument


def _run(step: Step, folder: Path, threads: int, before: dict[str, Spent]) -> Spent:
    """Run a step with its output in logs/NAME.log; what it took, also in an earlier run from the same inputs."""
    done = folder / "done" / f"{step.name}.json"
    inputs = dict(
        command=list(step.command),
        after={name: before[name].run for name in step.after},
        reads={str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in step.reads},
    )
    if done.is_file():
        record = json.loads(done.read_text())
        if record.get("inputs") == inputs:
            return Spent(**record["spent"])
    command = [sys.executable, *map(_resolve, step.command)]
    if step.makes is not None and step.makes.exists():
        shutil.rmtree(step.makes)
    log = folder / "logs" / f"{step.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": str(threads)}
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        tail = "\n".join(log.read_text().splitlines()[-5:])
        raise ConfigError(f"step {step.name} failed, see {log}:\n{tail}")
    spent = Spent(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, f"{time.time_ns():x}")
    done.parent.mkdir(exist_ok=True)
    done.write_text(json.dumps(dict(inputs=inputs, spent=spent._asdict())))
    return spent


def finished(folder: Path) -> dict[str, Spent]:
    """What the steps that are done in this folder took."""
    return {path.stem: Spent(**json.loads(path.read_text())["spent"]) for path in (folder / "done").glob("*.json")}


def _progress(folder: Path, names: list[str]) -> str:
    """The newest training line of each running step, shortened."""
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


def run_steps(steps: list[Step], folder: Path) -> dict[str, Spent]:
    """Run the steps in the order of their needs; what each took.

    Args:
        folder: gets logs/, and done/ with a record of each finished step.

    Raises:
        ConfigError: if one fails, with the end of its log; those under way are finished first.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    lanes = 1 if torch.cuda.is_available() else max(1, min(2, cores))
    threads = max(1, cores // lanes)
    waiting, running, spent = list(steps), {}, {}
    start = time.perf_counter()
    with ThreadPoolExecutor(lanes) as pool:
        while waiting or running:
            for step in [s for s in waiting if all(n in spent for n in s.after)][: lanes - len(running)]:
                waiting.remove(step)
                future: Future = pool.submit(_run, step, folder, threads, dict(spent))
                running[future] = step
            finished, _ = wait(running, timeout=SHOW_EVERY, return_when=FIRST_COMPLETED)
            clock = f"[{int(time.perf_counter() - start) // 60:2d}:{int(time.perf_counter() - start) % 60:02d}]"
            if not finished:
                print(f"{clock} {_progress(folder, [s.name for s in running.values()])}", flush=True)
            for future in finished:
                step = running.pop(future)
                spent[step.name] = future.result()
                took = f"{spent[step.name].seconds:.0f} s"
                print(f"{clock} {len(spent)}/{len(steps)} {step.name}: done in {took}", flush=True)
    return spent
