"""Stands in for mmcv's compiled operators: NMS and RoIAlign computed by torchvision, on a CPU or a GPU.

`python -m arm_toolkit.mmcv_ops` copies this file to mmcv/_ext.py. It therefore imports nothing of this project. Where
mmcv was compiled, Python imports the compiled module instead, also if this file lies beside it.

The functions take the arguments of mmcv's compiled ones; all but the scalars are positional, as mmcv calls them.
Every other operator can be imported, and raises `MissingOperator` when it is called.

Legend: N boxes or regions, B images, C channels, (H, W) a map, (h, w) the size of a pooled region.
"""

import ctypes

import torch
import torchvision
from torch import Tensor


class MissingOperator(NotImplementedError):
    """An operator of mmcv that torchvision does not have was called; the message names it and the remedy."""


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Non-maximum suppression.

    Args:
        boxes: (N, 4) corners x1, y1, x2, y2, of any float type.
        scores: (N,).
        iou_threshold: a box is dropped if its IoU with a better one is greater.
        offset: 1 if x2 and y2 are the last pixels inside a box, 0 if they are its edges.

    Returns:
        (n,) int64: indices of the boxes that are kept, best first.
    """
    if boxes.dtype in (torch.float16, torch.bfloat16):  # torchvision refuses them on a CPU, bfloat16 on a GPU too
        boxes = boxes.float()
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # mmcv compares in float32, in which 0.6 is a little more than in float64: an IoU of 0.6 must not exceed it
    threshold = ctypes.c_float(iou_threshold).value
    # mmcv orders equal scores as this sort does, torchvision as they come: give it scores without equal ones
    order = scores.sort(0, descending=True)[1]
    ranks = torch.arange(len(order), 0, -1, dtype=boxes.dtype, device=boxes.device)
    return order[torch.ops.torchvision.nms(boxes[order], ranks, threshold)]


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Average the map over each cell of each region, by bilinear samples; writes `output`.

    Args:
        input: (B, C, H, W) of any float type; 16-bit types are computed in float32.
        rois: (N, 5): index of the image, then the corners x1, y1, x2, y2 in pixels of the image.
        output: (N, C, h, w), written.
        argmax_y, argmax_x: of mmcv's maximum pooling; not used.
        aligned_height, aligned_width: h and w.
        spatial_scale: pixels of the map per pixel of the image.
        sampling_ratio: samples per cell in each direction; 0: as many as the cell has pixels.
        pool_mode: 1, average pooling.
        aligned: whether the centres of pixels lie at half-integer coordinates.

    Raises:
        MissingOperator: if `pool_mode` is 0, maximum pooling.
    """
    if pool_mode == 0:
        raise _missing("roi_align with pool_mode='max'")
    dtype = _computed_in(input)
    output.copy_(
        torch.ops.torchvision.roi_align(
            input.to(dtype),
            rois.to(dtype),
            spatial_scale,
            aligned_height,
            aligned_width,
            _samples(sampling_ratio),
            aligned,
        )
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of `roi_align_forward` with respect to its input; writes `grad_input`, (B, C, H, W).

    Args:
        grad_output: (N, C, h, w).
    """
    dtype = _computed_in(grad_output)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad_output.to(dtype),
            rois.to(dtype),
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            _samples(sampling_ratio),
            aligned,
        )
    )


def get_compiler_version() -> str:
    """What stands in for the compiler in mmengine's report of the environment."""
    return f"none (operators of torchvision {torchvision.__version__})"


def get_compiling_cuda_version() -> str:
    """The CUDA version that torchvision was compiled with, or mmcv's words if it was not."""
    version = torch.ops.torchvision._cuda_version()  # 13000 for 13.0, -1 for none
    return f"{version // 1000}.{version % 1000 // 10}" if version > 0 else "not available"


def _computed_in(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def _samples(sampling_ratio: int) -> int:
    return sampling_ratio if sampling_ratio > 0 else -1  # torchvision's word for "as many as the cell has pixels"


def _missing(what: str) -> MissingOperator:
    return MissingOperator(
        f"mmcv's operator {what} is not among those that torchvision computes (nms, roi_align with average pooling); "
        "compile mmcv's own: bash tools/install.sh --mmcv-ops"
    )


def __getattr__(name: str):
    """Any other operator, so that the modules of mmcv.ops can be imported."""
    if name.startswith("__"):  # Python's own questions, e.g. for __path__
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def operator(*args, **kwargs):
        raise _missing(name)

    operator.__name__ = name
    return operator
