"""Runs the whole workflow on a generated data set: pretrain, convert, finetune, evaluate, report.

Each step starts one of the tools as a user would. On a CPU, independent steps run side by side; on a GPU
they run one after another. Finished steps are not repeated.

Example:
  bash tools/quickstart.sh
"""

import argparse
import json
import shlex
import shutil
import time
from importlib import import_module
from pathlib import Path

import torch

from arm_backbone.arm import resolve_arch
from arm_backbone.checkpoint.writing import replacing

from ..engine.config import load_config
from ..errors import run_tool
from ..machine import cpu_multiplies_bfloat16, machine
from .steps import ROOT, Spent, Step, run_steps

FOLDER = Path("work_dirs/quickstart")
DET = "det_configs/quickstart_mask_rcnn.py"
SEG = "seg_configs/quickstart_upernet.py"
PRETRAIN = "pretrain/configs/quickstart.py"


def plan() -> list[Step]:
    """The steps of the quickstart. Of steps that can run side by side, the longest come first."""
    work_dir, backbone = FOLDER / "pretrain", FOLDER / "backbone.pth"
    # bfloat16 saves a fifth to a third of the time
    amp = ("--amp",) if not torch.cuda.is_available() and cpu_multiplies_bfloat16() else ()
    shapes = ("tools/prepare_data.py", "shapes", str(FOLDER / "shapes"))
    pretrain = ("tools/pretrain.py", PRETRAIN, "--work-dir", str(work_dir), *amp)
    convert = ("tools/convert_checkpoint.py", f"@{work_dir}", str(backbone), "--to", "backbone")
    steps = [
        Step("shapes", shapes),
        Step("pretrain", pretrain, ("shapes",), work_dir),
        Step("convert", convert, ("pretrain",)),
    ]
    from_scratch = "model.backbone.init_cfg=None"
    layers = resolve_arch(load_config(str(ROOT / SEG)).model.backbone.arch)[1]
    frozen = f"model.backbone.frozen_stages={layers}"
    for name, config, options in (
        ("det_scratch", DET, (from_scratch,)),
        ("det_pretrained", DET, ()),
        ("seg_scratch", SEG, (from_scratch,)),
        ("seg_pretrained", SEG, ()),
        ("probe_random", SEG, (from_scratch, frozen)),
        ("probe_pretrained", SEG, (frozen,)),
    ):
        work_dir = FOLDER / name
        needs = "shapes" if from_scratch in options else "convert"
        out = work_dir / ("predictions.json" if config == DET else "predictions")
        train = ("tools/train.py", config, "--work-dir", str(work_dir), *amp)
        test = ("tools/test.py", config, f"@{work_dir}", "--work-dir", str(work_dir / "test"), "--out", str(out))
        options = ("--cfg-options", *options) if options else ()
        steps.append(Step(name, train + options, (needs,), work_dir))
        steps.append(Step(f"{name}_test", test + options, (name,), work_dir / "test"))
    return steps


def write_record(steps: list[Step], spent: dict[str, Spent], total_seconds: float) -> None:
    """Write steps.json: commands, times, machine and versions, for the report."""
    commands = {step.name: shlex.join(["python", *step.command]) for step in steps}
    record = dict(
        steps=[dict(name=name, seconds=spent[name].seconds, command=command) for name, command in commands.items()],
        total_seconds=total_seconds,
        machine=machine(),
        versions={name: import_module(name).__version__ for name in ("torch", "timm", "mmengine", "mmdet", "mmseg")},
    )
    with replacing(FOLDER / "steps.json") as partial:
        partial.write_text(json.dumps(record, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="tools/quickstart.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fresh", action="store_true", help="delete earlier results and run every step again")
    args = parser.parse_args()
    if args.fresh and FOLDER.exists():
        shutil.rmtree(FOLDER)
    FOLDER.mkdir(parents=True, exist_ok=True)
    start = time.time()
    steps = plan()
    print(f"{len(steps)} steps on {machine()}; logs in {FOLDER / 'logs'}", flush=True)
    spent = run_steps(steps, FOLDER)
    write_record(steps, spent, time.time() - start)
    from .report import write_quickstart_report  # imports matplotlib and mmseg, which nothing before needs

    path = write_quickstart_report(FOLDER)
    print(f"\n{(FOLDER / 'report.md').read_text()}\nReport: {path} (open it in a browser)")


if __name__ == "__main__":
    run_tool(main)
