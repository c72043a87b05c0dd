"""Testing and prediction in bfloat16, which is faster where the machine multiplies it."""

import functools
from collections.abc import Iterator

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import nn

from arm_backbone.optim import find_encoder

from .batches_hook import unwrapped

DTYPES = ("float32", "bfloat16")
_PRODUCTS = ("x_proj_weight", "dt_proj_weight")  # of mixers, which are no modules of their own


def use_dtype(cfg: Config, dtype: str) -> None:
    """Let a hook test in a dtype of `DTYPES`."""
    if dtype == "bfloat16":
        cfg.custom_hooks = [*(cfg.get("custom_hooks") or ()), dict(type="Bfloat16TestHook")]


def compute_in_bfloat16(model: nn.Module) -> None:
    """Make `model.test_step` run under bfloat16 autocast; scan states, norms and scores stay in float32.

    Autocast converts weights at every call. Those of the encoder's matrix products are therefore converted here, once,
    in place, which changes no result. The model can no longer be trained.
    """
    for weight in _product_weights(model):
        weight.data = weight.data.to(torch.bfloat16)
    logits = getattr(getattr(model, "decode_head", None), "conv_seg", None)
    if logits is not None:  # mmseg resizes and compares the logits: bfloat16 has too many ties
        logits.register_forward_hook(lambda module, inputs, output: output.float())
    step = model.test_step

    @functools.wraps(step)
    def run(*args, **kwargs):
        with torch.autocast(next(model.parameters()).device.type, torch.bfloat16):
            return step(*args, **kwargs)

    model.test_step = run


def _product_weights(model: nn.Module) -> Iterator[nn.Parameter]:
    """The weights of an encoder that autocast would convert."""
    encoder = find_encoder(model)[1]
    for module in () if encoder is None else encoder.modules():
        if type(module) is nn.Linear:
            yield from module.parameters()
        yield from (weight for name in _PRODUCTS if (weight := getattr(module, name, None)) is not None)


@HOOKS.register_module()
class Bfloat16TestHook(Hook):
    """Tests in bfloat16, see `compute_in_bfloat16`."""

    def before_test(self, runner) -> None:
        """Called once the weights are loaded."""
        compute_in_bfloat16(unwrapped(runner.model))
