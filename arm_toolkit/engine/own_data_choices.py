"""Chooses sizes, batch, length and rates for training on somebody's own images, each with its reason in a few words."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arm_backbone.arm import ARCHS

from ..datasets.formats.recognise import OwnData
from ..machine import available_cores

# model -> its name in the files of our configurations
MODELS = dict(arm_tiny="ti", arm_small="s", arm_base="b", arm_large="l", arm_huge="h")
MINUTES = 10  # that training may take on a CPU
EVALUATIONS = 10  # in one training, fewer where they would take more than a quarter of its time
SMALLEST = 16  # pixels that the side of a small object should have: the smallest anchor of the narrow heads

# seconds for a megapixel in one training step of ARM-Ti with narrow heads, measured on one core of an Intel Xeon
# (family 6, model 207) in bfloat16; other models take longer by their width squared, an evaluation about a third
CPU_SECONDS = dict(detection=7.6, segmentation=7.3, classification=7.3)
# GiB of a GPU that an image of one megapixel takes in training ARM-B with recomputation off: an estimate
GPU_GIB = dict(detection=10.0, segmentation=8.0, classification=5.0)
# learning rate and its batch, from pretrained weights: those of our configurations
RATES = dict(detection=(1e-4, 16), segmentation=(1e-4, 16), classification=(5e-4, 256))
CPU_RATE = 5e-4  # for narrow heads, a few hundred iterations and the batches of 4 to 16 on a CPU
SCRATCH = 2  # times that without pretrained weights


@dataclass
class Machine:
    """What trains: GPUs of one kind, or a processor.

    Attributes:
        gpu: its name, "" if there is none.
        gpus: their number.
        gib: memory of one GPU.
        cores: of the processor, that this process may use.
    """

    gpu: str = ""
    gpus: int = 0
    gib: float = 0.0
    cores: int = 1

    def __str__(self) -> str:
        if self.gpu:
            return f"{self.gpus} x {self.gpu} with {self.gib:.0f} GiB"
        return f"no GPU, {self.cores} core{'s' * (self.cores > 1)}"


def this_machine() -> Machine:
    """The machine that this runs on."""
    import torch

    if not torch.cuda.is_available():
        return Machine(cores=available_cores())
    properties = torch.cuda.get_device_properties(0)
    return Machine(properties.name, torch.cuda.device_count(), properties.total_memory / 2**30, available_cores())


def arch_name(model: str) -> str:
    """The name of a model's architecture in `arm_backbone.arm.ARCHS`."""
    return model.removeprefix("arm_")


def width_of(model: str) -> int:
    """The width of a model's encoder."""
    return ARCHS[arch_name(model)]["embed_dims"]


@dataclass
class Choices:
    """What a configuration sets; every reason is a phrase for a comment.

    Attributes:
        size: detection: the longest side; segmentation: (width, height) of a whole image; classification: a side.
        crop: side of a training crop (segmentation).
        batch: images per process.
    """

    model: str
    narrow: bool
    size: int | tuple[int, int]
    size_reason: str
    batch: int
    batch_reason: str
    iterations: int
    iterations_reason: str
    rate: float
    rate_reason: str
    crop: int
    crop_reason: str
    evaluations: int

    @property
    def interval(self) -> int:
        """Iterations from one evaluation to the next."""
        return max(1, self.iterations // self.evaluations)

    @property
    def patience(self) -> int:
        """Evaluations without a better one after which training stops: half of them."""
        return max(3, self.evaluations // 2)

    @property
    def decay(self) -> float:
        """Of the moving average of the weights: it reaches back over a twentieth of the training."""
        return round(1 - 20 / self.iterations, 4) if self.iterations > 40 else 0.5


def choose(data: OwnData, machine: Machine, model: str, scratch: bool) -> Choices:
    """Fit a training to the images and the machine.

    Args:
        model: a name of `MODELS`.
        scratch: there are no pretrained weights.
    """
    narrow = not machine.gpu
    size, size_reason, crop, crop_reason = _SIZES[data.task](data, machine)
    images = data.counts()["train"]
    if data.task == "detection":
        width, height = _typical(data)
        pixels = size * size * min(width, height) / max(width, height)
    else:
        pixels = crop * crop if crop else size * size
    batch, batch_reason = _batch(data.task, machine, model, pixels / 1e6, images)
    tested = data.counts()["val"] * (pixels if data.task != "segmentation" else size[0] * size[1]) / 1e6
    iterations, evaluations, iterations_reason = _length(
        data.task, machine, model, batch * pixels / 1e6, tested, batch, images
    )
    if narrow:
        rate, rate_reason = CPU_RATE, f"for {iterations} iterations of {batch} images"
    else:
        reference, of_batch = RATES[data.task]
        rate = float(f"{reference * batch * machine.gpus / of_batch:.2g}")
        rate_reason = f"{reference:g} for a batch of {of_batch}, scaled to {batch * machine.gpus}"
    if scratch:
        rate, rate_reason = SCRATCH * rate, f"{rate_reason}; doubled, without pretrained weights"
    reasons = size_reason, batch, batch_reason, iterations, iterations_reason, rate, rate_reason
    return Choices(model, narrow, size, *reasons, crop, crop_reason, evaluations)


def default_model(machine: Machine) -> str:
    """ARM-B on a GPU, ARM-Ti without."""
    return "arm_base" if machine.gpu else "arm_tiny"


def _typical(data: OwnData) -> tuple[int, int]:
    """Median width and height of the training images."""
    width, height = np.median(data.image_sizes(), axis=0)
    return int(width), int(height)


def _detection_size(data: OwnData, machine: Machine) -> tuple[int, str, int, str]:
    width, height = _typical(data)
    long = max(width, height)
    small = float(np.percentile(data.object_sides(), 25))
    usual, most = (1333, 2048) if machine.gpu else (320, 512)
    needed = long * SMALLEST / max(small, 1.0)
    size = min(max(usual, needed), most)
    size = min(size, 2 * long) if machine.gpu else min(size, long)
    size = 1333 if size == 1333 else max(64, math.ceil(size / 32) * 32)
    at = small * size / long
    reason = f"a quarter of the objects is below {small:.0f} pixels of {long}; here {at:.0f}"
    if at < SMALLEST:
        reason += ", which is little: cut the images into tiles"
    return size, reason, 0, ""


def _segmentation_size(data: OwnData, machine: Machine) -> tuple[tuple[int, int], str, int, str]:
    width, height = _typical(data)
    most = 1024 if machine.gpu else 480
    scale = min(1.0, most / max(width, height))
    size = max(32, round(width * scale)), max(32, round(height * scale))
    reason = f"images are {width} x {height}" + ("; more takes too long on this machine" if scale < 1 else "")
    crop = max(32, min(512 if machine.gpu else 192, min(size) // 32 * 32))
    crop_reason = "the usual crop" if crop in (192, 512) else "the short side of an image, in steps of 32"
    return size, reason, crop, crop_reason


def _classification_size(data: OwnData, machine: Machine) -> tuple[int, str, int, str]:
    width, height = _typical(data)
    usual, where = (224, "a GPU") if machine.gpu else (128, "a CPU")
    size = max(32, min(usual, min(width, height) // 16 * 16))
    return size, f"images are {width} x {height}; {usual} is usual on {where}", 0, ""


_SIZES = dict(detection=_detection_size, segmentation=_segmentation_size, classification=_classification_size)


def _batch(task: str, machine: Machine, model: str, megapixels: float, images: int) -> tuple[int, str]:
    """Images per process; even, for mixup, and never more than there are."""
    if machine.gpu:
        width = width_of(model) / width_of("arm_base")
        fits = machine.gib * 0.7 / (GPU_GIB[task] * megapixels * max(width, 0.4))
        most = dict(detection=8, segmentation=16, classification=256)[task]
        reason = f"what {machine.gib:.0f} GiB hold, by estimate"
    else:
        fits = most = dict(detection=4, segmentation=8, classification=16)[task]
        reason = "on a CPU the time grows with the batch"
    batch = int(max(1 if task == "detection" else 2, min(fits, most)))
    if fits < 1:
        reason += "; if it does not: --cfg-options model.backbone.with_cp=full, or smaller images"
    if batch > images:
        batch, reason = max(1, images), "there are no more images"
    return (batch if batch < 2 else batch // 2 * 2), reason


def _length(
    task: str, machine: Machine, model: str, megapixels: float, tested: float, batch: int, images: int
) -> tuple[int, int, str]:
    """Iterations and evaluations: on a GPU for a number of epochs, on a CPU for `MINUTES`.

    Args:
        megapixels: of a batch.
        tested: megapixels of the validation split.
    """
    if machine.gpu:
        total = batch * machine.gpus
        iterations = _round(int(min(max(50 * images / total, 1500), 60000)), EVALUATIONS)
        passes = f"{iterations * total / images:.0f} passes over {images} images"
        return iterations, EVALUATIONS, f"{passes}; at least 1,500 iterations and at most 60,000"
    slower = (width_of(model) / width_of("arm_tiny")) ** 2
    second = CPU_SECONDS[task] * slower / min(machine.cores, 4) ** 0.8  # for a megapixel
    evaluation = second * tested / 3
    evaluations = int(min(max(0.25 * MINUTES * 60 / max(evaluation, 0.1), 2), EVALUATIONS))
    left = max(MINUTES * 60 - evaluations * evaluation, 0.5 * MINUTES * 60)
    iterations = int(min(max(left / (second * megapixels), 100), 100 * images / batch + 400))
    iterations = _round(iterations, evaluations)
    minutes = (iterations * second * megapixels + evaluations * evaluation) / 60
    passes = f"{iterations * batch / images:.0f} passes over {images} images"
    return iterations, evaluations, f"{passes}; about {minutes:.0f} minutes on {machine.cores} cores"


def _round(iterations: int, evaluations: int) -> int:
    """A whole number of evaluation intervals of a round length."""
    interval = iterations // evaluations
    step = 10 ** max(0, len(str(interval)) - 2) * (5 if interval >= 20 else 1)
    return max(1, interval // step * step) * evaluations


def default_weights(model: str, root: Path) -> Path | None:
    """The pretrained weights of a model that our configurations name, if they are there."""
    path = root / "checkpoints" / f"arm_{MODELS[model]}_pretrain.pth"
    return path if path.is_file() else None
