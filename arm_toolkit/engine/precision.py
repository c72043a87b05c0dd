"""Testing and prediction in bfloat16, which is faster where the machine multiplies it."""

import functools
from collections.abc import Iterator

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor, nn

from arm_backbone.openmmlab import Classifier
from arm_backbone.optim import find_encoder

from ..errors import ConfigError
from .batches_hook import unwrapped

_PRODUCTS = ("x_proj_weight", "dt_proj_weight")  # of mixers, which are no modules of their own
_PREDICTIONS = ("fc_cls", "fc_reg", "conv_logits")  # layers of the heads behind RoIAlign


def use_dtype(cfg: Config, dtype: str) -> None:
    """Let a hook test in a dtype of `arguments.DTYPES`."""
    if dtype == "bfloat16":
        cfg.custom_hooks = [*(cfg.get("custom_hooks") or ()), dict(type="Bfloat16TestHook")]


def prepare_for_bfloat16(model: nn.Module) -> None:
    """Prepare a detector, segmentor or classifier, in place, for `test_step` under `bfloat16_autocast`.

    The layers whose output is a score or a box then compute in float32, because bfloat16 has too many ties and rounds
    coordinates. Autocast converts weights at every call; those of the encoder's matrix products are converted here,
    once, which changes no result. The model can no longer be trained.

    Raises:
        ConfigError: for a model with heads that would round boxes or scores.
    """
    for layer in _prediction_layers(model):
        layer.__class__ = Float32Linear if isinstance(layer, nn.Linear) else Float32Conv2d
    for weight in _product_weights(model):
        weight.data = weight.data.to(torch.bfloat16)


def bfloat16_autocast(model: nn.Module) -> torch.autocast:
    """The context in which a prepared model runs."""
    return torch.autocast(next(model.parameters()).device.type, torch.bfloat16)


class _Float32:
    """A layer that ignores autocast."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class Float32Linear(_Float32, nn.Linear):
    """A linear layer that ignores autocast."""


class Float32Conv2d(_Float32, nn.Conv2d):
    """A convolution that ignores autocast."""


def _prediction_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that compute scores and boxes."""
    if isinstance(model, Classifier):
        sized = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        return [layer for layer in sized if layer.out_features == model.num_classes][-1:]
    if hasattr(model, "decode_head"):
        heads = model.decode_head
        head = heads[-1] if isinstance(heads, nn.ModuleList) else heads
        if not isinstance(getattr(head, "conv_seg", None), nn.Conv2d):
            raise ConfigError(
                f"--dtype bfloat16: model.decode_head is {type(head).__name__}, whose scores bfloat16 would round, "
                "since they are not those of a layer conv_seg; use float32"
            )
        return [head.conv_seg]
    _check_detector(model)
    return [layer for name, layer in model.roi_head.named_modules() if name.rpartition(".")[2] in _PREDICTIONS]


def _check_detector(model: nn.Module) -> None:
    from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor

    from ..models.float32_heads import Float32RoIExtractor, Float32RPNHead

    parts = [getattr(model, "rpn_head", None)]
    parts += [part for part in model.modules() if isinstance(part, BaseRoIExtractor)]
    wrong = [part for part in parts if not isinstance(part, Float32RPNHead | Float32RoIExtractor)]
    if wrong:
        found = f"has {type(wrong[0]).__name__}" if wrong[0] is not None else "has no rpn_head"
        raise ConfigError(
            f"--dtype bfloat16: {type(model).__name__} {found}, which would round boxes; use float32, or a detector "
            "with Float32RPNHead and Float32RoIExtractor (arm_toolkit.models.float32_heads)"
        )


def _product_weights(model: nn.Module) -> Iterator[nn.Parameter]:
    """The weights of an encoder that autocast would convert."""
    encoder = find_encoder(model)[1]
    for module in () if encoder is None else encoder.modules():
        if type(module) is nn.Linear:
            yield from module.parameters()
        yield from (weight for name in _PRODUCTS if (weight := getattr(module, name, None)) is not None)


@HOOKS.register_module()
class Bfloat16TestHook(Hook):
    """Tests in bfloat16, see `prepare_for_bfloat16`."""

    def before_test(self, runner) -> None:
        """Called once the weights are loaded; test-time augmentation calls parts of the model, so its wrapper's step is
        the one under autocast."""
        prepare_for_bfloat16(unwrapped(runner.model))
        step = runner.model.test_step

        @functools.wraps(step)
        def run(*args, **kwargs):
            with bfloat16_autocast(runner.model):
                return step(*args, **kwargs)

        runner.model.test_step = run
