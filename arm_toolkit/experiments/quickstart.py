"""The whole path on a generated data set: pretrain, convert, finetune, evaluate, report. Run by tools/quickstart.sh.

Every step is one of the tools, started as a user would. Steps that do not wait for each other run side by side on a
CPU, one core each; on a GPU one after the other. A finished step is not run again.
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

from ..engine.config import load_config
from ..errors import run_tool
from ..machine import cpu_multiplies_bfloat16, machine
from .steps import ROOT, Step, run_steps

FOLDER = Path("work_dirs/quickstart")
DET, SEG, PRETRAIN = (
    "det_configs/quickstart_mask_rcnn.py",
    "seg_configs/quickstart_upernet.py",
    "pretrain/configs/quickstart.py",
)


def plan() -> list[Step]:
    """The steps; what takes longest comes first among those that can run side by side."""
    backbone = FOLDER / "backbone.pth"
    # a fifth to a third less time
    amp = ("--amp",) if not torch.cuda.is_available() and cpu_multiplies_bfloat16() else ()
    layers = resolve_arch(load_config(str(ROOT / SEG)).model.backbone.arch)[1]
    steps = [
        Step("shapes", ("tools/prepare_data.py", "shapes", str(FOLDER / "shapes"))),
        Step(
            "pretrain",
            ("tools/pretrain.py", PRETRAIN, "--work-dir", str(FOLDER / "pretrain"), *amp),
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
        train = ("tools/train.py", config, "--work-dir", str(work_dir), *amp)
        out = work_dir / ("predictions.pkl" if config == DET else "predictions")
        test = ("tools/test.py", config, f"@{work_dir}", "--work-dir", str(work_dir / "test"), "--out", str(out))
        options = ("--cfg-options", *options) if options else ()
        steps.append(Step(name, train + options, (needs,), work_dir))
        steps.append(Step(f"{name}_test", test + options, (name,), work_dir / "test"))
    return steps


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
    spent = run_steps(steps, FOLDER)
    record = dict(
        steps=[
            dict(name=s.name, seconds=spent[s.name].seconds, command=shlex.join(["python", *s.command])) for s in steps
        ],
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
