"""Cases of `tools/benchmark.py` for exported files, compared with the model that they came from.

Legend: B images, H x W pixels each.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConfigError, one_line
from ..inference.export_check import onnx_runner, program_runner
from ..inference.export_parts import make_part
from ..inference.export_source import find_source
from .case import Candidate, Case, Setting
from .model_cases import AXIS, INFERENCE, RATE, inference


def exported_cases(
    setting: Setting, model: str, files: list[str], checkpoint: str | None, part: str | None, sizes: list[tuple]
) -> Iterator[Case]:
    """Inference of a model in PyTorch, and of files that `tools/export.py` wrote from it, on a CPU.

    Args:
        model, checkpoint, part: as in `arm_toolkit.inference.export.export`.
        files: .onnx and .pt2.
        sizes: (H, W) of the images; None is the model's usual size.

    Raises:
        ConfigError: for a GPU or bfloat16, or if a file cannot be run.
    """
    if setting.device.type != "cpu" or setting.dtype != torch.float32:
        raise ConfigError("exported files are timed on a CPU in float32; add --device cpu --dtype float32")
    source = find_source(model, checkpoint)
    module = make_part(source.module, part, source.where)
    runners = {file: _runner(file) for file in files}
    for size in sizes:
        images = setting.randn(setting.batch, 3, *(size or source.size))
        height, width = images.shape[2:]
        title = f"batch {setting.batch}, {height} x {width} pixels, float32"
        case = Case(INFERENCE, height * width, AXIS, title, [], unit=RATE, memory=False)
        case.candidates.append(Candidate("PyTorch", inference(module, images, setting), setting.batch))
        for file, run in runners.items():
            _check(file, run, images)
            case.candidates.append(Candidate(Path(file).name, partial(run, images), setting.batch))
        yield case


def _runner(file: str) -> Callable[[Tensor], list[Tensor]]:
    if not Path(file).is_file() or not file.endswith((".onnx", ".pt2")):
        raise ConfigError(f"{file}: give files that tools/export.py wrote, .onnx or .pt2")
    found = onnx_runner(Path(file)) if file.endswith(".onnx") else program_runner(Path(file))
    if found is None:
        raise ConfigError(f"{file}: onnxruntime is not installed, which runs it; pip install onnxruntime")
    return found[0]


def _check(file: str, run: Callable[[Tensor], list[Tensor]], images: Tensor) -> None:
    try:
        run(images)
    except Exception as error:  # noqa: BLE001 a runtime can raise anything
        size = " x ".join(map(str, images.shape))
        raise ConfigError(f"{file} does not run on float32 images {size}: {one_line(error)}") from error
