"""Optimizer wrappers for bfloat16 autocast on a CPU, which mmengine's AmpOptimWrapper refuses, and on any machine."""

from contextlib import contextmanager

import torch
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from ..machine import cpu_multiplies_bfloat16


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """Runs the forward under bfloat16 autocast, with float32 weights and scan states. No loss scaling is needed."""

    @contextmanager
    def optim_context(self, model: nn.Module):
        with super().optim_context(model), torch.autocast("cpu", torch.bfloat16):
            yield


@OPTIM_WRAPPERS.register_module()
class AutoAmpOptimWrapper(OptimWrapper):
    """Runs the forward under bfloat16 autocast where the machine multiplies bfloat16 faster, else in float32.

    That is on NVIDIA GPUs since Ampere, and on processors where a trial is faster. The log says which it is. A resumed
    run keeps the precision that it began with.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        faster = torch.cuda.get_device_capability() >= (8, 0) if self.device == "cuda" else cpu_multiplies_bfloat16()
        self.enabled = bool(faster)
        self._log("on this machine")

    def _log(self, why: str) -> None:
        print_log(f"precision: {'bfloat16 autocast' if self.enabled else 'float32'} {why}", logger="current")

    def state_dict(self) -> dict:
        """mmengine's, and whether the run uses bfloat16."""
        return super().state_dict() | dict(bfloat16=self.enabled)

    def load_state_dict(self, state_dict: dict) -> None:
        """mmengine's; a state without a precision (of an earlier version) leaves it as it is."""
        state_dict = dict(state_dict)
        enabled = state_dict.pop("bfloat16", self.enabled)
        if enabled != self.enabled:
            self.enabled = enabled
            self._log("as before the run was interrupted")
        super().load_state_dict(state_dict)

    @contextmanager
    def optim_context(self, model: nn.Module):
        with super().optim_context(model), torch.autocast(self.device, torch.bfloat16, enabled=self.enabled):
            yield
