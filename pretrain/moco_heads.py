"""The heads of MoCo v3 for vision transformers: perceptrons with batch normalization over all processes.

Legend: B images of a process, C channels.
"""

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes, differentiated as if they were one."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone()
        all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.clone()
        all_reduce(grad)
        return grad


class SyncBatchNorm(nn.BatchNorm1d):
    """Batch normalization of (B, C) over the batches of all processes; PyTorch's own needs GPUs.

    Every process must have the same number of images.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or get_world_size() == 1:
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        count = len(x) * get_world_size()
        mean = _SumOverProcesses.apply(wide.sum(0)) / count
        centred = wide - mean
        variance = _SumOverProcesses.apply(centred.square().sum(0)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(variance.to(self.running_var.dtype) * (count / (count - 1)), self.momentum)
        normed = centred * (variance + self.eps).rsqrt()
        if self.affine:
            normed = normed * self.weight + self.bias
        return normed.to(x.dtype)


def head(*widths: int) -> nn.Sequential:
    """Linear layers without biases between the given widths, each followed by batch normalization.

    All but the last are followed by ReLU; the last normalization has no parameters.
    """
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False), 1):
        last = i == len(widths) - 1
        layers += [nn.Linear(inputs, outputs, bias=False), SyncBatchNorm(outputs, affine=not last)]
        layers += [] if last else [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def projector(dim: int, hidden: int, out_dim: int) -> nn.Sequential:
    """Three layers after the encoder, of `dim` channels."""
    return head(dim, hidden, hidden, out_dim)


def predictor(hidden: int, out_dim: int) -> nn.Sequential:
    """Two layers after the projector."""
    return head(out_dim, hidden, out_dim)


def normalized(x: Tensor) -> Tensor:
    """Rows of length 1, in at least float32."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1)
