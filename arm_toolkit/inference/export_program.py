"""Records a model with torch.export, for one image size or any, and writes the program as a .pt2 file."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from arm_backbone.checkpoint.writing import uninterrupted
from arm_backbone.ops import scan_backend
from arm_backbone.ops.program import recurrence

from ..errors import ConfigError, one_line
from .export_pooling import AnySizePooling

AXES = {0: "batch", 2: "height", 3: "width"}
METADATA = "export.json"  # name of the JSON text in a file: an extra file of .pt2, a key of ONNX's metadata_props


def record(
    part: nn.Module,
    size: tuple[int, int],
    any_size: bool,
    own_operators: bool = False,
    loop: Callable | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.export.ExportedProgram:
    """Record a module on images (B, 3, H, W); the program takes any number of images.

    Args:
        part: in evaluation mode, on the CPU.
        size: (height, width) in pixels of the images that are recorded.
        any_size: the program takes images of any size; else of this one.
        own_operators: keep the operators `arm::cross_conv` and `arm::cross_scan`, which run the fastest back end where
            the program runs and need `import arm_backbone`; else PyTorch's own operators.
        loop: in the place of `arm_backbone.ops.program.token_loop`.
        dtype: of the images.

    Raises:
        ConfigError: if the model cannot be recorded; it says why.
    """
    part.requires_grad_(False)
    images = torch.zeros(2, 3, *size, dtype=dtype)
    axes = AXES if any_size else {0: AXES[0]}
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(AnySizePooling())
        stack.enter_context(scan_backend("auto" if own_operators else "reference"))
        if loop is not None:
            stack.enter_context(recurrence(loop))
        try:
            program = torch.export.export(
                part, (images,), dynamic_shapes=({axis: torch.export.Dim.DYNAMIC for axis in axes},), strict=False
            )
        except Exception as error:  # noqa: BLE001 a model's forward can raise anything
            remedy = "" if not any_size else f"; one size may do: --img-size {size[0]} {size[1]}"
            raise ConfigError(f"torch.export cannot record this model ({one_line(error)}){remedy}") from error
    return program


def write_program(program: torch.export.ExportedProgram, file: Path, metadata: dict) -> list[Path]:
    """Write a program as a .pt2 file, with `metadata` as JSON in its extra file `METADATA`."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # paths of this machine
    with uninterrupted():
        torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata)})
    return [file]
