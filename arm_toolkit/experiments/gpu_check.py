"""Checks the toolkit on a machine with a GPU: short trainings at real sizes, and their evaluation.

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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, run_tool
from ..parent import ENDS_WITH_PARENT

ROOT = Path(__file__).resolve().parents[2]

# Modules that a phase imports, by the names that Python and pip know
BASE = {name: name for name in ("torch", "torchvision", "timm", "numpy", "safetensors")} | {"PIL": "pillow"}
OPENMMLAB = BASE | {
    "cv2": "opencv-python-headless",
    "mmengine": "onedl-mmengine",
    "mmcv": "onedl-mmcv",
    "yaml": "pyyaml",
    **{name: name for name in ("addict", "matplotlib", "prettytable", "rich", "termcolor", "yapf", "pycocotools")},
}
DETECTION = OPENMMLAB | {"mmdet": "onedl-mmdetection", "imgaug": "imaug"}
DETECTION |= {name: name for name in ("scipy", "shapely", "six", "terminaltables", "tqdm")}
SEGMENTATION = OPENMMLAB | {"mmseg": "onedl-mmsegmentation", "ftfy": "ftfy", "regex": "regex", "scipy": "scipy"}


@dataclass(frozen=True)
class Sizes:
    """What is trained, and how much of it."""

    detector: str
    segmentor: str
    side: int  # of an image, in pixels
    batch: int
    iterations: int
    rate: float  # learning rate


FULL = Sizes("det_configs/mask_rcnn_arm_b.py", "seg_configs/upernet_arm_b.py", 800, 2, 30, 1e-4)
SMALL = Sizes("det_configs/quickstart_mask_rcnn.py", "seg_configs/quickstart_upernet.py", 96, 2, 12, 1e-3)
TEST_IMAGES = 8


@dataclass(frozen=True)
class Phase:
    """One check.

    Attributes:
        command: of `python`, paths relative to this repository.
        needs: module -> package that it imports.
        seconds: after which it is ended.
        judge: reads the figures that it left; raises ConfigError if they are not what they should be.
        after: names of phases without which it cannot run.
    """

    name: str
    command: Callable[[], list[str]]
    needs: dict[str, str]
    seconds: int
    judge: Callable[[], dict] = dict
    after: tuple[str, ...] = ()


def detector_config(out: Path, sizes: Sizes) -> str:
    """A configuration that trains the detector on the generated shapes for a few iterations."""
    classes, data = ("disc", "square", "triangle"), f"{out}/shapes/coco/"
    return f"""_base_ = {str(ROOT / sizes.detector)!r}
model = dict(
    backbone=dict(init_cfg=None),
    roi_head=dict(bbox_head=dict(num_classes={len(classes)}), mask_head=dict(num_classes={len(classes)})),
)
dataset = dict(data_root={data!r}, metainfo=dict(classes={classes}))
train_dataloader = dict(batch_size={sizes.batch}, dataset=dict(indices=None, **dataset))
test_dataloader = dict(dataset=dataset)
test_evaluator = dict(ann_file={data + "annotations/instances_val2017.json"!r})
del dataset
train_cfg = dict(max_epochs=1)
{_short(sizes)}"""


def segmentor_config(out: Path, sizes: Sizes) -> str:
    """A configuration that trains the segmentor on the generated shapes for a few iterations."""
    return f"""_base_ = {str(ROOT / sizes.segmentor)!r}
model = dict(backbone=dict(init_cfg=None))
dataset = dict(data_root={f"{out}/shapes/ade/"!r})
train_dataloader = dict(batch_size={sizes.batch}, dataset=dict(indices=None, **dataset))
test_dataloader = dict(dataset=dataset)
del dataset
train_cfg = dict(max_iters={sizes.iterations})
{_short(sizes)}"""


def _short(sizes: Sizes) -> str:
    """The part that both share: a learning rate that is constant after a third, every loss logged, no validation."""
    return f"""val_cfg = val_dataloader = val_evaluator = None
optim_wrapper = dict(optimizer=dict(lr={sizes.rate}))
param_scheduler = [dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end={sizes.iterations // 3})]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(save_best=None))
log_processor = dict(window_size=1)
"""


def plan(out: Path, sizes: Sizes) -> list[Phase]:
    """The phases, in the order of their value. Writes the configurations that they train."""
    shapes = ["tools/prepare_data.py", "shapes", f"{out}/shapes", "--train", str(sizes.iterations * sizes.batch)]
    shapes += ["--val", str(TEST_IMAGES), "--size", str(sizes.side)]
    phases = [Phase("images", lambda: shapes, BASE | {"pycocotools": "pycocotools"}, 60)]
    for name, text, needs in (
        ("mask_rcnn", detector_config(out, sizes), DETECTION),
        ("upernet", segmentor_config(out, sizes), SEGMENTATION),
    ):
        config, work_dir = out / f"{name}.py", out / name
        config.write_text(text)
        phases += _train_and_test(name, config, work_dir, needs, sizes)
    return phases


def _train_and_test(name: str, config: Path, work_dir: Path, needs: dict[str, str], sizes: Sizes) -> list[Phase]:
    training = f"{name}: training"

    def train() -> list[str]:
        return ["tools/train.py", str(config), "--work-dir", str(work_dir)]

    def test() -> list[str]:
        checkpoint = (work_dir / "last_checkpoint").read_text().strip()
        return ["tools/test.py", str(config), checkpoint, "--work-dir", str(work_dir / "test")]

    return [
        Phase(training, train, needs, 120, lambda: _trained(work_dir, sizes), ("images",)),
        Phase(f"{name}: test", test, needs, 60, lambda: _tested(work_dir / "test"), (training,)),
    ]


def _trained(work_dir: Path, sizes: Sizes) -> dict:
    """Losses, speed and memory of a training; its losses must have fallen."""
    (log,) = work_dir.glob("*/vis_data/scalars.json")
    lines = [line for line in map(json.loads, log.read_text().splitlines()) if "loss" in line]
    losses = [line["loss"] for line in lines]
    part = max(1, len(losses) // 5)
    first, last = sum(losses[:part]) / part, sum(losses[-part:]) / part
    times = sorted(line["time"] for line in lines[part:])
    figures = dict(iterations=len(losses), first_loss=round(first, 4), last_loss=round(last, 4))
    figures["images_per_second"] = round(sizes.batch / times[len(times) // 2], 2)
    if "memory" in lines[-1]:
        figures["peak_GiB"] = round(lines[-1]["memory"] / 1024, 2)
    if len(losses) != sizes.iterations or not last < first:
        raise ConfigError(f"the loss did not fall in {sizes.iterations} iterations: {figures}")
    return figures


def _tested(work_dir: Path) -> dict:
    """The scores of an evaluation."""
    log = max(work_dir.glob("*/*.json"))
    scores = json.loads(log.read_text().splitlines()[-1])
    kept = ("coco/bbox_mAP", "coco/segm_mAP", "mIoU")
    return {name.rpartition("/")[2]: scores[name] for name in kept if name in scores}


def missing_imports(needs: dict[str, str]) -> list[str]:
    """What of these modules is not there, with the package that has it."""
    absent = (name for name in needs if not importlib.util.find_spec(name))
    missing = [f"{name} (pip install {needs[name]})" for name in absent]
    if "mmcv" in needs and not missing and not importlib.util.find_spec("mmcv._ext"):
        missing.append("mmcv._ext (python -m arm_toolkit.mmcv_ops)")
    return missing


def run(phase: Phase, out: Path, environment: dict[str, str]) -> dict:
    """Run a phase; return its result: status "passed" or "failed", seconds, figures or the reason."""
    log = out / "logs" / f"{phase.name.replace(': ', '_')}.log"
    log.parent.mkdir(exist_ok=True)
    start = time.perf_counter()
    command = [sys.executable, *phase.command()]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(phase.seconds)
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
        return dict(status="failed", seconds=seconds, reason=f"not finished after {phase.seconds} s (see {log})")
    try:
        return dict(status="passed", seconds=seconds, **phase.judge())
    except (ConfigError, ValueError, LookupError) as error:
        return dict(status="failed", seconds=seconds, reason=f"{error} (see {log})")


def check(out: Path, sizes: Sizes, environment: dict[str, str]) -> bool:
    """Run all phases and print a table; return whether all passed. Each result is appended to out/results.jsonl."""
    results: dict[str, dict] = {}
    with (out / "results.jsonl").open("w") as file:
        for phase in plan(out, sizes):
            missing = missing_imports(phase.needs)
            without = [name for name in phase.after if results[name]["status"] != "passed"]
            if missing:
                result = dict(status="not run", reason=f"missing: {', '.join(missing)}")
            elif without:
                result = dict(status="not run", reason=f"needs: {', '.join(without)}")
            else:
                result = run(phase, out, environment)
            results[phase.name] = result
            line = json.dumps(dict(phase=phase.name, **result))
            print(line, flush=True)
            print(line, file=file, flush=True)
    print()
    for name, result in results.items():
        shown = [f"{key.replace('_', ' ')} {value}" for key, value in result.items() if key != "status"]
        print(f"{name:20} {result['status']:8} {', '.join(shown)}")
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
