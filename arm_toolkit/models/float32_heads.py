"""mmdet's RPN head and RoIAlign in float32 under bfloat16 autocast; detection configurations name this module.

mmcv's compiled CUDA operators (RoIAlign, NMS) do not support bfloat16, whose 8 significant bits would also round a
coordinate of 1000 pixels to a multiple of 4.
"""

import torch
from mmdet.models import RPNHead, SingleRoIExtractor
from mmengine.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class Float32RPNHead(RPNHead):
    """mmdet's RPNHead, computed in float32 from (B, C, H, W) maps of any float type."""

    def forward(self, x: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor]]:
        with torch.autocast(x[0].device.type, enabled=False):
            return super().forward(tuple(level.float() for level in x))


@MODELS.register_module()
class Float32RoIExtractor(SingleRoIExtractor):
    """mmdet's SingleRoIExtractor, computed in float32 from (B, C, H, W) maps of any float type."""

    def forward(self, feats: tuple[Tensor, ...], rois: Tensor, roi_scale_factor: float | None = None) -> Tensor:
        with torch.autocast(rois.device.type, enabled=False):
            return super().forward(tuple(level.float() for level in feats), rois.float(), roi_scale_factor)
