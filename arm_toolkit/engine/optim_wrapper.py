"""bfloat16 autocast on a CPU, which mmengine's AmpOptimWrapper refuses."""

from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """Forward under bfloat16 autocast, weights and scan in float32; bfloat16's range needs no loss scaling."""

    @contextmanager
    def optim_context(self, model: nn.Module):
        with super().optim_context(model), torch.autocast("cpu", torch.bfloat16):
            yield
