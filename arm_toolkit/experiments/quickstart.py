"""Runs the whole workflow on a generated data set: pretrain, convert, finetune, evaluate, publish, predict, report.

Each step starts one of the tools as a user would. On a CPU, two steps run side by side; on a GPU they run one after
another. Finished steps are not repeated.

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

from arm_backbone.checkpoint.writing import replacing

from ..errors import run_tool
from ..machine import machine
from .generated import DET, SEG, pretraining_steps, training_steps
from .steps import Spent, Step, run_steps

FOLDER = Path("work_dirs/quickstart")


def plan() -> list[Step]:
    """The steps of the quickstart. Of steps that can run side by side, the longest come first."""
    new = FOLDER / "new_images"
    steps = pretraining_steps(FOLDER / "shapes", FOLDER / "pretrain", FOLDER / "backbone.pth")
    for name, config in (("det", DET), ("seg", SEG)):
        published, predicted = FOLDER / "published" / name, FOLDER / "predicted" / name
        publish = ("tools/publish.py", f"@{FOLDER / name}", str(published), "--dataset", "shapes")
        predict = ("tools/predict.py", str(published), str(new / "coco/val2017"), "--out", str(predicted))
        steps += training_steps(FOLDER / name, config, "convert")
        steps.append(Step(f"{name}_publish", publish, (f"{name}_test",), published))
        steps.append(Step(f"{name}_predict", predict, (f"{name}_publish", "new_images"), predicted))
    draw = ("tools/prepare_data.py", "shapes", str(new), "--train", "1", "--val", "3", "--seed", "1")
    steps.append(Step("new_images", draw))
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
