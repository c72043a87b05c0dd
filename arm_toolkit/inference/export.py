"""Exports a model: records it, writes the file, and compares the file with the model.

Legend: B batch, H, W image height and width.
"""

import os
import tempfile
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from arm_backbone.checkpoint.writing import check_writable, replacing, write_errors
from arm_images.errors import DataError
from arm_images.find import find_images
from arm_images.pillow import Image
from arm_images.read import read_rgb, reason

from ..errors import ConfigError
from .export_check import compare, onnx_runner, program_runner
from .export_parts import FromPixels, Part, make_part
from .export_program import AXES, record, write_program
from .export_source import Source, find_source

FORMAT = 1  # of the metadata
COMPARED = 3  # images


def export(
    model: str,
    file: str | os.PathLike,
    checkpoint: str | None = None,
    *,
    part: str | None = None,
    ops: str = "standard",
    size: tuple[int, int] | None = None,
    pixels: bool = False,
    images: Sequence[str] = (),
) -> None:
    """Export a model to FILE.onnx or FILE.pt2, and print what the file holds and how it differs from the model.

    Args:
        model, checkpoint: see `export_source.find_source`.
        part: one of `export_parts.PARTS`; None: all that can be exported.
        ops: "standard": operators of ONNX or PyTorch alone; "ort": onnxruntime's LinearAttention (.onnx); "arm": our
            operators (.pt2).
        size: (height, width) in pixels; None: any.
        pixels: the file takes RGB pixels, uint8, and normalizes them.
        images: files and folders to compare on; without any the configuration's test images, else noise.

    Raises:
        ConfigError, CheckpointError, DataError: naming what cannot be used, and the remedy; nothing is written then.
        WriteError: if the file cannot be written.
    """
    file = Path(file)
    onnx = file.suffix == ".onnx"
    if onnx:
        _require("onnx", "onnxscript")
    source = find_source(model, checkpoint)
    module = make_part(source.module, part, source.where)
    if pixels:
        module = FromPixels(module, source.mean, source.std, source.channels).eval()
    batches, what = _batches(source, images, size, pixels, module.multiple)
    metadata = describe(source, module, size, pixels)
    check_writable(file)
    print(f"recording {source.where}", flush=True)
    warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)`", FutureWarning)  # from PyTorch's exporter
    warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)  # from torch.export.load
    loop = None
    if ops == "ort":
        from .export_onnx import linear_attention as loop
    program = record(
        module, size or source.size, size is None, ops == "arm", loop, torch.uint8 if pixels else torch.float32
    )
    with tempfile.TemporaryDirectory(prefix=".export-", dir=file.parent) as folder:
        beside = Path(folder, file.name)
        with write_errors(file, beside):
            if onnx:
                from .export_onnx import write_onnx

                axes = AXES if size is None else {0: AXES[0]}
                made = write_onnx(program, beside, list(module.outputs), axes, metadata)
            else:
                made = write_program(program, beside, metadata)
        checked = _check(module, beside, batches, what)
        for part_file in reversed(made):  # weights before the file that refers to them
            with replacing(file.with_name(part_file.name)) as partial:
                os.replace(part_file, partial)
    _report(file, [path.name for path in made], metadata, checked)


def describe(source: Source, part: Part, size: tuple[int, int] | None, pixels: bool) -> dict:
    """What a file says about itself: its input, its outputs and its classes."""
    given = dict(
        name="images",
        shape=["batch", 3, *(size or ("height", "width"))],
        dtype="uint8" if pixels else "float32",
        channels="RGB" if pixels else source.channels,
        resize=dict(source.resize or {}),
        pad_size_divisor=max(source.divisor, part.multiple),
    )
    if not pixels:
        given |= dict(mean=source.mean, std=source.std, scale="(pixel from 0 to 255 - mean) / std")
    found = dict(format=FORMAT, task=part.task, input=given, outputs=part.outputs)
    return found | (source.classes() if part.task != "features" else {})


def _require(*packages: str) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"{missing[0]} is not installed, which writes ONNX; pip install {' '.join(packages)} onnxruntime"
        )


def _check(part: Part, file: Path, batches: list[Tensor], what: str) -> str:
    """Compare a file with the model; one line about it.

    Raises:
        ConfigError: if they differ by more than rounding.
    """
    found = onnx_runner(file) if file.suffix == ".onnx" else program_runner(file)
    if found is None:
        return "not compared with the model, because onnxruntime is not installed; pip install onnxruntime"
    run, runtime = found
    comparison = compare(part, run, batches)
    if not comparison.agrees:
        raise ConfigError(f"{file.name} is not kept, because {runtime} computes something else on {what}: {comparison}")
    return f"{runtime} on {what}: {comparison}"


def _report(file: Path, names: list[str], metadata: dict, checked: str) -> None:
    for name in names:
        path = file.with_name(name)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    given = metadata["input"]
    shape = ", ".join(map(str, given["shape"]))
    print(f"input images ({shape}), {given['dtype']}, {given['channels']}")
    for name, text in metadata["outputs"].items():
        print(f"output {name}: {text}")
    print(checked)


# ------------------------------------------------------------------------------------------------- images to compare on


def _batches(
    source: Source, given: Sequence[str], size: tuple[int, int] | None, pixels: bool, multiple: int
) -> tuple[list[Tensor], str]:
    """Batches of the model's size, and of others if it takes any, with a word for what the images are."""
    files = _files(given) if given else find_images(source.images)[:COMPARED] if source.images else []
    height, width = size or source.size
    sizes = [(2, height, width)]
    if size is None:
        others = (height * 4 // 5 + 1, width * 4 // 3 + 3), (height * 5 // 4, width * 3 // 2)
        sizes += [(1, *(-(-side // multiple) * multiple for side in sides)) for sides in others]
    generator = np.random.default_rng(0)
    batches, used = [], iter(files * 4)
    for number, height, width in sizes:
        noise = generator.integers(0, 256, (number, height, width, 3), dtype=np.uint8)
        images = [_read(next(used), (width, height)) if files else noise[i] for i in range(number)]
        batches.append(_tensor(np.stack(images), source, pixels))
    return batches, f"{min(len(files), COMPARED)} images" if files else "noise"


def _files(given: Sequence[str]) -> list[Path]:
    files = []
    for name in given:
        path = Path(name)
        files += find_images(path) if path.is_dir() else [path]
    return files[:COMPARED]


def _read(file: Path, size: tuple[int, int]) -> np.ndarray:
    try:
        return np.asarray(read_rgb(file).resize(size, Image.Resampling.BICUBIC))
    except Exception as error:  # noqa: BLE001 a decoder can raise anything
        raise DataError(f"{file} cannot be read ({reason(error)})") from None


def _tensor(images: np.ndarray, source: Source, pixels: bool) -> Tensor:
    """(B, H, W, 3) uint8, RGB -> (B, 3, H, W) as the file takes it."""
    tensor = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    if pixels:
        return tensor
    tensor = tensor.float() if source.channels == "RGB" else tensor.flip(1).float()
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (source.mean, source.std))
    return (tensor - mean) / std
