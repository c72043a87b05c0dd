"""Runs an exported file on images and compares it with the model.

Legend: B batch, H, W image height and width.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, one_line
from .export_parts import Part

TOLERANCE = 1e-3  # of the largest value: far more than rounding, far less than any mistake
Runner = Callable[[Tensor], list[Tensor]]


@dataclass
class Comparison:
    """How an exported file differs from the model, over all images.

    Attributes:
        largest: the largest difference of a value.
        scale: the largest value.
        other: labels or top-1 classes that differ.
        decisions: how many there are; 0 for a file without any.
        what: "label" or "top-1 class".
        sizes: (B, H, W) of the batches.
    """

    largest: float = 0.0
    scale: float = 0.0
    other: int = 0
    decisions: int = 0
    what: str = ""
    sizes: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        return self.largest <= TOLERANCE * max(self.scale, 1e-6) and self.other <= 1e-4 * self.decisions

    def __str__(self) -> str:
        sizes = ", ".join(f"{b} x {h} x {w}" for b, h, w in self.sizes)
        text = f"largest difference {self.largest:.1e} (largest value {self.scale:.3g}) on images {sizes}"
        if not self.decisions:
            return text
        same = f"same {self.what} of all {self.decisions:,}"
        other = f"another {self.what} in {self.other:,} of {self.decisions:,}"
        return f"{other if self.other else same}, {text}"


def onnx_runner(file: Path) -> tuple[Runner, str] | None:
    """A function that runs an ONNX file, and what runs it; None without onnxruntime."""
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(value) for value in session.run(None, {"images": np.ascontiguousarray(images)})]

    return run, f"onnxruntime {onnxruntime.__version__}"


def program_runner(file: Path) -> tuple[Runner, str]:
    """A function that runs a .pt2 file, and what runs it."""
    module = torch.export.load(file).module()

    def run(images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return list(module(images))

    return run, f"PyTorch {torch.__version__}"


def compare(part: Part, run: Runner, batches: list[Tensor]) -> Comparison:
    """Run a part and its exported file on the same images.

    Raises:
        ConfigError: if the file does not run, or its outputs have other shapes.
    """
    found = Comparison()
    decides = {"classification": "top-1 class", "segmentation": "label"}
    found.what = decides.get(part.task, "")
    for images in batches:
        with torch.no_grad():
            expected = part(images)
        try:
            results = run(images)
        except Exception as error:  # noqa: BLE001 a runtime can raise anything
            size = " x ".join(map(str, images.shape))
            raise ConfigError(
                f"the file is not kept, because it does not run on images {size}: {one_line(error)}"
            ) from error
        for name, one, other in zip(part.outputs, expected, results, strict=True):
            if one.shape != other.shape:
                shapes = f"{tuple(other.shape)}, the model's {tuple(one.shape)}"
                raise ConfigError(f"the file is not kept, because its output {name} has shape {shapes}")
            if not one.is_floating_point():
                continue
            found.largest = max(found.largest, float((one - other).abs().max()))
            found.scale = max(found.scale, float(one.abs().max()))
        if found.what:
            ours, theirs = (_decisions(outputs, part.task) for outputs in (expected, results))
            found.other += int((ours != theirs).sum())
            found.decisions += ours.numel()
        found.sizes.append((len(images), *images.shape[2:]))
    return found


def _decisions(outputs: list[Tensor], task: str) -> Tensor:
    return outputs[0].argmax(1) if task == "classification" else outputs[0]
