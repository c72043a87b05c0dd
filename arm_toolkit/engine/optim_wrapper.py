"""Optimizer wrapper for bfloat16 autocast on a CPU, which mmengine's AmpOptimWrapper refuses."""

from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """Runs the forward under bfloat16 autocast, with float32 weights and scan states. No loss scaling is needed."""

    @contextmanager
    def optim_context(self, model: nn.Module):
        with super().optim_context(model), torch.autocast("cpu", torch.bfloat16):
            yield
