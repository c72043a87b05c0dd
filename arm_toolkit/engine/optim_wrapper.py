"""bfloat16 autocast on a CPU, which mmengine's AmpOptimWrapper refuses."""

from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """The forward in bfloat16, weights and scan in float32; no loss scaling, as bfloat16 has float32's range."""

    @contextmanager
    def optim_context(self, model: nn.Module):
        with super().optim_context(model), torch.autocast("cpu", torch.bfloat16):
            yield
