"""Checks the toolkit on a machine with a GPU: short trainings at real sizes, their evaluation, kernels and speed.

Each phase runs in a process of its own with a limit of time, and its result is written at once. This file imports
nothing that may be missing, and names what is.

Example:
  bash tools/gpu_check.sh
"""

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ..errors import ConfigError, run_tool
from ..parent import ENDS_WITH_PARENT
from .gpu_phases import FULL, ROOT, SMALL, Phase, Sizes, plan

LEAST_SECONDS = 10  # with less than this nothing is started


def missing_imports(needs: dict[str, str]) -> list[str]:
    """What of these modules is not there, with the package that has it."""
    absent = (name for name in needs if not importlib.util.find_spec(name))
    missing = [f"{name} (pip install {needs[name]})" for name in absent]
    if "mmcv" in needs and not missing and not importlib.util.find_spec("mmcv._ext"):
        missing.append("mmcv._ext (python -m arm_toolkit.mmcv_ops)")
    return missing


def run(phase: Phase, out: Path, environment: dict[str, str], limit: float) -> dict:
    """Run a phase, not longer than `limit` seconds.

    Returns:
        status "passed" or "failed", seconds, and figures or the reason.
    """
    log = out / "logs" / f"{phase.name.replace(': ', '_')}.log"
    log.parent.mkdir(exist_ok=True)
    start = time.perf_counter()
    command = [sys.executable, *phase.command()]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with contextlib.suppress(ProcessLookupError):  # with its data workers
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds = round(time.perf_counter() - start, 1)
    if status:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        return dict(status="failed", seconds=seconds, reason=f"{''.join(last)} (see {log})")
    if status is None:
        return dict(status="failed", seconds=seconds, reason=f"not finished after {limit:.0f} s (see {log})")
    try:
        return dict(status="passed", seconds=seconds, **phase.judge(log))
    except (ConfigError, ValueError, LookupError) as error:
        return dict(status="failed", seconds=seconds, reason=f"{error} (see {log})")


def check(out: Path, sizes: Sizes, environment: dict[str, str]) -> bool:
    """Run all phases and print a table; return whether all passed. Each result is appended to out/results.jsonl."""
    results: dict[str, dict] = {}
    start = time.perf_counter()
    with (out / "results.jsonl").open("w") as file:
        for phase in plan(out, sizes):
            missing = missing_imports(phase.needs)
            without = [name for name in phase.after if results[name]["status"] != "passed"]
            if missing:
                result = dict(status="not run", reason=f"missing: {', '.join(missing)}")
            elif without:
                result = dict(status="not run", reason=f"needs: {', '.join(without)}")
            elif (left := sizes.seconds - (time.perf_counter() - start)) < LEAST_SECONDS:
                result = dict(status="not run", reason=f"{sizes.seconds} s are over")
            else:
                result = run(phase, out, environment, min(phase.seconds, left))
            results[phase.name] = result
            line = json.dumps(dict(phase=phase.name, **result))
            print(line, flush=True)
            print(line, file=file, flush=True)
    print()
    for name, result in results.items():
        named = {key.replace("_", " ") if key.isidentifier() else f"{key}:": value for key, value in result.items()}
        shown = [f"{key} {value}" for key, value in named.items() if key != "status"]
        print(f"{name:35} {result['status']:8} {', '.join(shown)}")
    return all(result["status"] == "passed" for result in results.values())


def _environment(out: Path, cpu: bool) -> dict[str, str]:
    """Variables of the processes: this repository's packages first, even if they are not installed."""
    packages = out / "packages"
    packages.mkdir(exist_ok=True)
    link = packages / "arm_pretrain"  # the folder pretrain/ under its import name
    if not link.exists():
        link.symlink_to(ROOT / "pretrain", target_is_directory=True)
    path = os.pathsep.join([str(ROOT), str(packages), *filter(None, [os.environ.get("PYTHONPATH")])])
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if cpu else {}
    return {**os.environ, "PYTHONPATH": path, ENDS_WITH_PARENT: str(os.getpid()), **hidden}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="tools/gpu_check.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cpu", action="store_true", help="small models and images, on the CPU: checks this program")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/gpu_check"), help="folder (work_dirs/gpu_check)")
    args = parser.parse_args()
    machine = "no torch"
    if importlib.util.find_spec("torch"):
        import torch

        if not args.cpu and not torch.cuda.is_available():
            raise ConfigError(f"torch {torch.__version__} finds no GPU; --cpu checks small models on the CPU")
        from ..machine import machine as describe

        machine = f"{'CPU of ' * args.cpu}{describe()}, torch {torch.__version__}"
    out = args.out.resolve() / time.strftime("%Y%m%d_%H%M%S")
    out.mkdir(parents=True)
    print(f"{machine}, Python {sys.version.split()[0]}; results in {out}", flush=True)
    if not check(out, SMALL if args.cpu else FULL, _environment(out, args.cpu)):
        sys.exit(1)


if __name__ == "__main__":
    run_tool(main)
