"""The whole path on a generated data set: pretrain, convert, finetune, evaluate, report. Run by tools/quickstart.sh.

Every step is one of the tools, started as a user would. Steps that do not wait for each other run side by side on a
CPU, one core each; on a GPU one after the other. A finished step is not run again.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch

from arm_backbone.arm import resolve_arch

from .config import load_config
from .errors import ConfigError, run_tool

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path("work_dirs/quickstart")
DET, SEG, PRETRAIN = (
    "det_configs/quickstart_mask_rcnn.py",
    "seg_configs/quickstart_upernet.py",
    "pretrain/configs/quickstart.py",
)
SHOW_EVERY = 20  # seconds between two lines about what is running


@dataclass(frozen=True)
class Step:
    """One tool to run.

    Attributes:
        name: also names its log file.
        command: arguments after `python`.
        after: steps that must be done first.
        makes: path that it makes, removed before it starts again.
    """

    name: str
    command: tuple[str, ...]
    after: tuple[str, ...] = ()
    makes: Path | None = None


def plan() -> list[Step]:
    """The steps; what takes longest comes first among those that can run side by side."""
    backbone = FOLDER / "backbone.pth"
    layers = resolve_arch(load_config(str(ROOT / SEG)).model.backbone.arch)[1]
    steps = [
        Step("shapes", ("tools/prepare_data.py", "shapes", str(FOLDER / "shapes")), makes=FOLDER / "shapes"),
        Step(
            "pretrain",
            ("tools/pretrain.py", PRETRAIN, "--work-dir", str(FOLDER / "pretrain")),
            ("shapes",),
            FOLDER / "pretrain",
        ),
    ]
    steps.append(
        Step(
            "convert",
            ("tools/convert_checkpoint.py", f"@{FOLDER / 'pretrain'}", str(backbone), "--to", "backbone"),
            ("pretrain",),
        )
    )
    frozen = f"model.backbone.frozen_stages={layers}"
    for name, config, options in (
        ("det_scratch", DET, ("model.backbone.init_cfg=None",)),
        ("det_pretrained", DET, ()),
        ("seg_scratch", SEG, ("model.backbone.init_cfg=None",)),
        ("seg_pretrained", SEG, ()),
        ("probe_random", SEG, ("model.backbone.init_cfg=None", frozen)),
        ("probe_pretrained", SEG, (frozen,)),
    ):
        work_dir = FOLDER / name
        needs = "shapes" if "model.backbone.init_cfg=None" in options else "convert"
        train = ("tools/train.py", config, "--work-dir", str(work_dir))
        out = work_dir / ("predictions.pkl" if config == DET else "predictions")
        test = ("tools/test.py", config, f"@{work_dir}", "--work-dir", str(work_dir / "test"), "--out", str(out))
        options = ("--cfg-options", *options) if options else ()
        steps.append(Step(name, train + options, (needs,), work_dir))
        steps.append(Step(f"{name}_test", test + options, (name,), work_dir / "test"))
    return steps


def _resolve(argument: str) -> str:
    """`@WORK_DIR` stands for the newest checkpoint of that folder."""
    return (Path(argument[1:]) / "last_checkpoint").read_text().strip() if argument.startswith("@") else argument


def _run(step: Step, threads: int) -> float:
    """Run a step with its output in logs/NAME.log; its seconds, also of an earlier run of the same command."""
    done = FOLDER / "done" / f"{step.name}.json"
    if done.is_file():
        record = json.loads(done.read_text())
        if record["command"] == list(step.command):
            return record["seconds"]
    if step.makes is not None and step.makes.exists() and step.name != "shapes":
        shutil.rmtree(step.makes)
    log = FOLDER / "logs" / f"{step.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / step.command[0]), *map(_resolve, step.command[1:])]
    command[2:] = [str(ROOT / a) if a in (DET, SEG, PRETRAIN) else a for a in command[2:]]
    start = time.perf_counter()
    with log.open("w") as output:
        code = subprocess.run(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            check=False,
        ).returncode
    if code:
        tail = "\n".join(log.read_text().splitlines()[-5:])
        raise ConfigError(f"step {step.name} failed, see {log}:\n{tail}")
    seconds = time.perf_counter() - start
    done.parent.mkdir(exist_ok=True)
    done.write_text(json.dumps(dict(name=step.name, seconds=seconds, command=list(step.command))))
    return seconds


def _progress(names: list[str]) -> str:
    """The newest training line of each running step, shortened."""
    parts = []
    for name in names:
        log = FOLDER / "logs" / f"{name}.log"
        lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
        line = next((x for x in reversed(lines) if "(train)" in x or "(test)" in x), "")
        words = line.split(" - INFO - ")[-1].split()
        shown = " ".join(words[: next((i for i, w in enumerate(words) if w.endswith("lr:")), 4)])
        loss = next((f", loss {words[i + 1]}" for i, w in enumerate(words) if w == "loss:"), "")
        parts.append(f"{name} {shown}{loss}".strip())
    return " | ".join(parts)


def run_all(steps: list[Step]) -> dict[str, float]:
    """Run the steps in the order of their needs; seconds of each.

    Raises:
        ConfigError: if one fails, with the end of its log; those under way are finished first.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    lanes = 1 if torch.cuda.is_available() else max(1, min(2, cores))
    threads = max(1, cores // lanes)
    waiting, running, seconds = list(steps), {}, {}
    start = time.perf_counter()
    with ThreadPoolExecutor(lanes) as pool:
        while waiting or running:
            for step in [s for s in waiting if all(n in seconds for n in s.after)][: lanes - len(running)]:
                waiting.remove(step)
                future: Future = pool.submit(_run, step, threads)
                running[future] = step
            finished, _ = wait(running, timeout=SHOW_EVERY, return_when=FIRST_COMPLETED)
            clock = f"[{int(time.perf_counter() - start) // 60:2d}:{int(time.perf_counter() - start) % 60:02d}]"
            if not finished:
                print(f"{clock} {_progress([s.name for s in running.values()])}", flush=True)
            for future in finished:
                step = running.pop(future)
                seconds[step.name] = future.result()
                print(
                    f"{clock} {len(seconds)}/{len(steps)} {step.name}: done in {seconds[step.name]:.0f} s", flush=True
                )
    return seconds


def machine() -> str:
    """The processor or GPU in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} GPU"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    model = next(
        (x.split(":")[1].strip() for x in lines if x.startswith("model name")),
        platform.processor() or "unknown processor",
    )
    return f"{model}, {os.cpu_count()} cores, no GPU"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="tools/quickstart.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fresh", action="store_true", help="run everything again, also what is finished")
    args = parser.parse_args()
    if args.fresh and FOLDER.exists():
        shutil.rmtree(FOLDER)
    FOLDER.mkdir(parents=True, exist_ok=True)
    start = time.time()
    steps = plan()
    print(f"{len(steps)} steps on {machine()}; logs in {FOLDER / 'logs'}", flush=True)
    seconds = run_all(steps)
    record = dict(
        steps=[dict(name=s.name, seconds=seconds[s.name], command=shlex.join(["python", *s.command])) for s in steps],
        total_seconds=time.time() - start,
        machine=machine(),
        versions={name: import_module(name).__version__ for name in ("torch", "timm", "mmengine", "mmdet", "mmseg")},
    )
    (FOLDER / "steps.json").write_text(json.dumps(record, indent=1))
    from .report import write_report  # draws with matplotlib: only needed here

    report = write_report(FOLDER)
    print(f"\n{(FOLDER / 'report.md').read_text()}\nReport: {report} (open it in a browser)")


if __name__ == "__main__":
    run_tool(main)
