"""What `tools/gpu_check.sh` checks: trainings at real sizes on generated images, the kernels, and speed."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]

# Modules that a phase imports, by the names that Python and pip know
MODELS = {name: name for name in ("torch", "torchvision", "timm", "numpy", "safetensors")} | {"PIL": "pillow"}
TOOLS = MODELS | {
    "mmengine": "onedl-mmengine",
    "cv2": "opencv-python-headless",
    "yaml": "pyyaml",
    **{name: name for name in ("addict", "matplotlib", "prettytable", "rich", "termcolor", "yapf")},
}
OPENMMLAB = TOOLS | {"mmcv": "onedl-mmcv"}
DETECTION = OPENMMLAB | {"mmdet": "onedl-mmdetection", "imgaug": "imaug"}
DETECTION |= {name: name for name in ("pycocotools", "scipy", "shapely", "six", "terminaltables", "tqdm")}
SEGMENTATION = OPENMMLAB | {"mmseg": "onedl-mmsegmentation", "ftfy": "ftfy", "regex": "regex", "scipy": "scipy"}


@dataclass(frozen=True)
class Training:
    """A short training.

    Attributes:
        config: which this one inherits from.
        batch: images per iteration.
        iterations: of a training; of an epoch in pretraining.
        rate: learning rate.
    """

    config: str
    batch: int
    iterations: int
    rate: float


@dataclass(frozen=True)
class Sizes:
    """How much is checked.

    Attributes:
        seconds: after which nothing more is started.
        side: of a generated image, in pixels.
        kernels: tests of the kernels, and of the block and mixer beside their plain operators.
        benchmarks: name -> arguments of `tools/benchmark.py`.
        timing: further arguments of every benchmark.
    """

    seconds: int
    side: int
    detector: Training
    segmentor: Training
    pretraining: Training
    classifier: Training
    kernels: tuple[str, ...]
    benchmarks: dict[str, str]
    timing: tuple[str, ...]


FULL = Sizes(
    seconds=420,
    side=800,
    detector=Training("det_configs/mask_rcnn_arm_b.py", 2, 30, 1e-4),
    segmentor=Training("seg_configs/upernet_arm_b.py", 2, 30, 1e-4),
    pretraining=Training("pretrain/configs/arm_b.py", 128, 15, 3e-4),
    classifier=Training("cls_configs/arm_b_in1k.py", 64, 60, 1e-4),
    kernels=("tests/arm_backbone/ops/test_gpu.py",),
    benchmarks={
        "ARM-B and DeiT-B at 224": "model arm_base_patch16_224 deit_base_patch16_224 --img-size 224 --batch 128",
        "ARM-B and DeiT-B at 1024": "model arm_base_patch16_224 deit_base_patch16_224 --img-size 1024 --batch 8",
        "scan": "scan --batch 2 --grid 64x64 64x64+1 --backward --only triton",
        "block": "block --batch 2 --grid 64x64+1 --backward",
        "CUDA graphs": "model arm_base_patch16_224 --img-size 512 --batch 2 --compile reduce-overhead",
    },
    timing=("--dtype", "bfloat16", "--seconds", "2"),
)
SMALL = Sizes(
    seconds=900,
    side=96,
    detector=Training("det_configs/quickstart_mask_rcnn.py", 2, 12, 1e-3),
    segmentor=Training("seg_configs/quickstart_upernet.py", 2, 12, 1e-3),
    pretraining=Training("pretrain/configs/quickstart.py", 8, 8, 1e-3),
    classifier=Training("cls_configs/quickstart_arm.py", 8, 40, 1e-3),
    kernels=("tests/arm_backbone/ops/test_inner.py", "-k", "gate or norm"),
    benchmarks={
        "models": "model arm_tiny_patch16_224 deit_tiny_patch16_224 --img-size 64",
        "scan": "scan --grid 4x4 --only torch",
    },
    timing=("--seconds", "0", "--repeats", "1"),
)
TEST_IMAGES = 8
CLASSES = ("disc", "square", "triangle")


@dataclass(frozen=True)
class Phase:
    """One check.

    Attributes:
        command: of `python`, paths relative to this repository.
        needs: module -> package that it imports.
        seconds: after which it is ended.
        judge: reads the figures that it left, given the file of its output; raises ConfigError if they are not what
            they should be.
        after: names of phases without which it cannot run.
    """

    name: str
    command: Callable[[], list[str]]
    needs: dict[str, str]
    seconds: int
    judge: Callable[[Path], dict] = lambda log: {}
    after: tuple[str, ...] = ()


def plan(out: Path, sizes: Sizes) -> list[Phase]:
    """The phases, in the order of their value. Writes the configurations that they train."""
    train = max(sizes.detector.iterations * sizes.detector.batch, sizes.segmentor.iterations * sizes.segmentor.batch)
    shapes = ["tools/prepare_data.py", "shapes", f"{out}/shapes", "--train", str(train)]
    shapes += ["--val", str(TEST_IMAGES), "--size", str(sizes.side)]
    return [
        Phase("images", lambda: shapes, MODELS | {"pycocotools": "pycocotools"}, 60),
        *_train_and_test("mask_rcnn", detector_config(out, sizes.detector), out, sizes.detector, DETECTION),
        *_train_and_test(
            "upernet", segmentor_config(out, sizes.segmentor), out, sizes.segmentor, SEGMENTATION, "bfloat16"
        ),
        *_pretrain_and_resume(out, sizes.pretraining),
        *_finetune(out, sizes.classifier),
        Phase("kernels", lambda: ["-m", "pytest", "-q", *sizes.kernels], MODELS | {"pytest": "pytest"}, 120, _counted),
        *(_benchmark(name, (*words.split(), *sizes.timing), out) for name, words in sizes.benchmarks.items()),
        _pretrain_with_graphs(out, sizes.pretraining),
    ]


def detector_config(out: Path, training: Training) -> str:
    """A configuration that trains the detector on the generated shapes for a few iterations."""
    data = f"{out}/shapes/coco/"
    return f"""_base_ = {str(ROOT / training.config)!r}
model = dict(
    backbone=dict(init_cfg=None),
    roi_head=dict(bbox_head=dict(num_classes={len(CLASSES)}), mask_head=dict(num_classes={len(CLASSES)})),
)
dataset = dict(data_root={data!r}, metainfo=dict(classes={CLASSES}))
train_dataloader = dict(
    batch_size={training.batch}, dataset=dict(indices={training.batch * training.iterations}, **dataset)
)
test_dataloader = dict(dataset=dataset)
test_evaluator = dict(ann_file={data + "annotations/instances_val2017.json"!r})
del dataset
train_cfg = dict(max_epochs=1)
{_short(training)}"""


def segmentor_config(out: Path, training: Training) -> str:
    """A configuration that trains the segmentor on the generated shapes for a few iterations."""
    return f"""_base_ = {str(ROOT / training.config)!r}
model = dict(backbone=dict(init_cfg=None))
dataset = dict(data_root={f"{out}/shapes/ade/"!r})
train_dataloader = dict(batch_size={training.batch}, dataset=dict(indices=None, **dataset))
test_dataloader = dict(dataset=dataset)
del dataset
train_cfg = dict(max_iters={training.iterations})
{_short(training)}"""


def pretraining_config(images: Path, training: Training) -> str:
    """A configuration that pretrains for two epochs of a few iterations on a list of images."""
    return f"""_base_ = {str(ROOT / training.config)!r}
train_dataloader = dict(batch_size={training.batch}, dataset=dict(path={str(images)!r}))
train_cfg = dict(max_epochs=2)
param_scheduler = dict(warmup=1)
optim_wrapper = dict(optimizer=dict(lr={training.rate}))
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1))
log_processor = dict(window_size=1)
"""


def classifier_config(out: Path, training: Training) -> str:
    """A configuration that trains the classifier on the generated classes for a few iterations, without mixup."""
    return f"""_base_ = {str(ROOT / training.config)!r}
model = dict(
    num_classes={len(CLASSES)}, init_cfg=None, data_preprocessor=dict(mixup=dict(prob=0.0, num_classes={len(CLASSES)}))
)
dataset = dict(data_root={f"{out}/classes/"!r})
train_dataloader = dict(batch_size={training.batch}, sampler=dict(infinite=True), dataset=dataset)
test_dataloader = dict(dataset=dataset)
del dataset
train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters={training.iterations}, val_interval=1000)
custom_hooks = []
{_short(training)}"""


def _short(training: Training) -> str:
    """What these share: a learning rate that is constant after a third, every loss logged, no validation."""
    return f"""val_cfg = val_dataloader = val_evaluator = None
optim_wrapper = dict(optimizer=dict(lr={training.rate}))
param_scheduler = [dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end={training.iterations // 3})]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(save_best=None))
log_processor = dict(window_size=1)
"""


def _train_and_test(
    name: str, text: str, out: Path, training: Training, needs: dict[str, str], dtype: str = "float32"
) -> list[Phase]:
    """A training of the configuration `text`, and a test with `--dtype`."""
    test = ["--dtype", dtype, "--work-dir", str(out / name / "test")]
    config, work_dir = out / f"{name}.py", out / name
    config.write_text(text)
    train = ["tools/train.py", str(config), "--work-dir", str(work_dir)]
    return [
        Phase(f"{name}: training", lambda: train, needs, 120, lambda log: trained(work_dir, training), ("images",)),
        Phase(
            f"{name}: test, {dtype}",
            lambda: ["tools/test.py", str(config), _checkpoint(work_dir), *test],
            needs,
            60,
            lambda log: _tested(work_dir / "test"),
            (f"{name}: training",),
        ),
    ]


def _pretrain_and_resume(out: Path, training: Training) -> list[Phase]:
    """Pretraining in this process; then one more epoch of it in a process of torchrun (NCCL on a GPU)."""
    config, work_dir, images = out / "pretraining.py", out / "pretraining", out / "pretraining.txt"
    config.write_text(pretraining_config(images, training))
    arguments = ["tools/pretrain.py", str(config), "--work-dir", str(work_dir)]

    def train() -> list[str]:
        files = sorted(map(str, (out / "shapes/coco/train2017").iterdir()))
        needed = training.batch * training.iterations
        images.write_text("\n".join((files * (needed // len(files) + 1))[:needed]))
        return arguments

    def resume() -> list[str]:
        options = ["--launcher", "pytorch", "--resume", "--cfg-options", "train_cfg.max_epochs=3"]
        return ["-m", "arm_toolkit.processes", "--standalone", "--nproc_per_node=1", *arguments, *options]

    twice = replace(training, iterations=2 * training.iterations)
    return [
        Phase("pretraining", train, TOOLS, 90, lambda log: trained(work_dir, twice), ("images",)),
        Phase("pretraining: resume", resume, TOOLS, 60, lambda log: resumed(work_dir, training), ("pretraining",)),
    ]


def _pretrain_with_graphs(out: Path, training: Training) -> Phase:
    """The same pretraining with the key `compile`: CUDA graphs on a GPU."""
    work_dir = out / "graphs"
    command = ["tools/pretrain.py", str(out / "pretraining.py"), "--work-dir", str(work_dir)]
    command += ["--cfg-options", "compile=reduce-overhead"]
    twice = replace(training, iterations=2 * training.iterations)
    return Phase(
        "pretraining: CUDA graphs",
        lambda: command,
        TOOLS,
        150,
        lambda log: trained(work_dir, twice),
        ("pretraining",),
    )


def _finetune(out: Path, training: Training) -> list[Phase]:
    crop = ["tools/prepare_data.py", "classes", f"{out}/shapes/coco", f"{out}/classes"]
    training_and_test = _train_and_test("classifier", classifier_config(out, training), out, training, TOOLS)
    crops = Phase("classes", lambda: crop, MODELS | {"pycocotools": "pycocotools"}, 60, after=("images",))
    return [crops, *(replace(phase, after=(*phase.after, "classes")) for phase in training_and_test)]


def _benchmark(name: str, arguments: tuple[str, ...], out: Path) -> Phase:
    file = out / f"{name.replace(' ', '_')}.json"
    command = ["tools/benchmark.py", *arguments, "--json", str(file)]
    seconds = 150 if "--compile" in arguments else 60
    return Phase(f"benchmark: {name}", lambda: command, TOOLS, seconds, lambda log: _measured(file))


def _checkpoint(work_dir: Path) -> str:
    return (work_dir / "last_checkpoint").read_text().strip()


def _losses(run: Path) -> list[dict]:
    """The lines of a run's log that have a loss."""
    (log,) = run.glob("vis_data/scalars.json")
    return [line for line in map(json.loads, log.read_text().splitlines()) if "loss" in line]


def _runs(work_dir: Path) -> list[Path]:
    """The folders of the runs in a work dir, the oldest first."""
    return sorted(path.parent for path in work_dir.glob("*/vis_data"))


def trained(work_dir: Path, training: Training) -> dict:
    """Losses, speed and memory of a training.

    Raises:
        ConfigError: if the losses did not fall.
    """
    lines = _losses(_runs(work_dir)[0])
    losses = [line["loss"] for line in lines]
    part = max(1, len(losses) // 5)
    first, last = sum(losses[:part]) / part, sum(losses[-part:]) / part
    times = sorted(line["time"] for line in lines[part:])
    figures = dict(iterations=len(losses), first_loss=round(first, 4), last_loss=round(last, 4))
    figures["images_per_second"] = round(training.batch / times[len(times) // 2], 2)
    if "memory" in lines[-1]:
        figures["peak_GiB"] = round(lines[-1]["memory"] / 1024, 2)
    if len(losses) != training.iterations or not last < first:
        raise ConfigError(f"the loss did not fall in {training.iterations} iterations: {figures}")
    return figures


def resumed(work_dir: Path, training: Training) -> dict:
    """Losses of the epoch that followed two others.

    Raises:
        ConfigError: if it is not the third epoch, or begins above the losses of the second.
    """
    before, after = (_losses(run) for run in _runs(work_dir))
    second = [line["loss"] for line in before[training.iterations :]]
    figures = dict(
        epoch=after[0]["epoch"], highest_loss_before=round(max(second), 4), first_loss=round(after[0]["loss"], 4)
    )
    if after[0]["epoch"] != 3 or len(after) != training.iterations or after[0]["loss"] > max(second):
        raise ConfigError(f"the third epoch does not continue the second: {figures}")
    return figures


def _tested(work_dir: Path) -> dict:
    """The scores of an evaluation.

    Raises:
        ConfigError: if there is none.
    """
    log = max(work_dir.glob("*/*.json"))
    scores = json.loads(log.read_text().splitlines()[-1])
    kept = ("coco/bbox_mAP", "coco/segm_mAP", "mIoU", "accuracy/top1")
    found = {name.rpartition("/")[2]: scores[name] for name in kept if name in scores}
    if not found:
        raise ConfigError(f"{log} has no score")
    return found


def _counted(log: Path) -> dict:
    """How many tests passed, and how many were skipped.

    Raises:
        ConfigError: if none passed.
    """
    counts = re.findall(r"(\d+) (passed|skipped)", log.read_text().splitlines()[-1])
    figures = {name: int(count) for count, name in counts}
    if not figures.get("passed"):
        raise ConfigError(f"no test ran: {figures}")
    return figures


def _measured(file: Path) -> dict:
    """Time, speed where it is counted, and peak memory of each candidate."""
    rows, figures = json.loads(file.read_text())["rows"], {}
    several = len({row["size"] for row in rows}) > 1
    for row in rows:
        size = f", {row['size']} {row['axis']}" if several else ""
        speed = f", {row['per_second']:.3g} {row['unit']}" if "unit" in row else ""
        memory = f", peak {row['peak_bytes'] / 2**30:.2f} GiB" if "peak_bytes" in row else ""
        figures[f"{row['kind']} of {row['candidate']}{size}"] = f"{1e3 * row['seconds']:.3g} ms{speed}{memory}"
    return figures
