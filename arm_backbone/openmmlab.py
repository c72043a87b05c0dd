"""Everything here that needs mmengine: registered models and the optimizer constructor.

Models go into mmengine's root registry, so that they are found under mmdet's and mmseg's scope alike.
"""

from mmengine.logging import print_log
from mmengine.model import BaseModule, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from . import arm, pyramid
from .arm import ARMTrunk
from .checkpoint import load_backbone, model_state, read_checkpoint
from .optim import parameter_groups


def _may_start_fresh(name: str) -> str | None:
    if name.startswith("out_norms."):
        return "output norms, learned with the dense task"
    if name in ("cls_token", "cls_pos_embed"):
        return "class token, learned in finetuning"
    return None


def load_pretrained(model: ARMTrunk, path: str) -> None:
    """Load an ARM checkpoint of any kind into a backbone and log the accounting; see `load_backbone` for errors."""
    accounting = load_backbone(model, model_state(read_checkpoint(path)), path, new=_may_start_fresh)
    print_log(f"Backbone weights from {path}:\n{accounting}", logger="current")


@MODELS.register_module(name="ARM")
class ARM(arm.ARM, BaseModule):
    """`arm_backbone.arm.ARM` for OpenMMLab.

    Args:
        init_cfg: None (from scratch), or dict(type="Pretrained", checkpoint=PATH) with an ARM checkpoint of any kind;
            unlike mmengine's own loading, one that does not fit is an error.
    """

    def __init__(self, *args, init_cfg: dict | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if init_cfg is not None and (init_cfg.get("type") != "Pretrained" or "checkpoint" not in init_cfg):
            raise ValueError(
                f"init_cfg={init_cfg!r}: give dict(type='Pretrained', checkpoint=PATH), or None for scratch"
            )
        self.init_cfg = init_cfg

    def init_weights(self) -> None:
        """Load the checkpoint of `init_cfg`; without one the constructor's initialisation stays."""
        if self.init_cfg is not None and not self.is_init:
            load_pretrained(self, self.init_cfg["checkpoint"])
        self._is_init = True


@MODELS.register_module(name="ARMPyramid")
class ARMPyramid(pyramid.ARMPyramid, BaseModule):
    """`arm_backbone.pyramid.ARMPyramid` for OpenMMLab."""


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ARMOptimWrapperConstructor:
    """Weight-decay exemption by name and layer-wise learning-rate decay for a model with an ARM trunk in it.

    Args:
        optim_wrapper_cfg: mmengine's, with `optimizer` inside.
        paramwise_cfg: `layer_decay` (1.0: none) and `decay_exempt` ("dense" or "reference", see
            `arm_backbone.optim.is_decayed`); no other keys.

    Raises:
        ValueError: for an unknown key, or a layer decay for a model without an ARM trunk.
    """

    KEYS = ("layer_decay", "decay_exempt")

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        self.optim_wrapper_cfg = optim_wrapper_cfg.copy()
        self.optimizer_cfg = self.optim_wrapper_cfg.pop("optimizer").copy()
        self.paramwise_cfg = dict(paramwise_cfg or {})
        unknown = [key for key in self.paramwise_cfg if key not in self.KEYS]
        if unknown:
            raise ValueError(f"paramwise_cfg has the unknown key {unknown[0]!r}; give {' or '.join(self.KEYS)}")

    def __call__(self, model: nn.Module) -> OptimWrapper:
        if is_model_wrapper(model):
            model = model.module
        layer_decay = self.paramwise_cfg.get("layer_decay", 1.0)
        depth, num_layers = trunk_depths(model)
        if layer_decay != 1.0 and not depth:
            raise ValueError(f"paramwise_cfg.layer_decay={layer_decay} needs an ARM trunk; the model has none")
        optimizer_cfg = self.optimizer_cfg.copy()
        optimizer_cfg["params"] = parameter_groups(
            model.named_parameters(),
            depth,
            num_layers,
            lr=optimizer_cfg["lr"],
            weight_decay=optimizer_cfg.get("weight_decay", 0.0),
            layer_decay=layer_decay,
            rule=self.paramwise_cfg.get("decay_exempt", "dense"),
        )
        optimizer = OPTIMIZERS.build(optimizer_cfg)
        return OPTIM_WRAPPERS.build(
            {"type": "OptimWrapper", **self.optim_wrapper_cfg}, default_args=dict(optimizer=optimizer)
        )


def trunk_depths(model: nn.Module) -> tuple[dict[str, int], int]:
    """Depth of every parameter of the model's ARM trunk by its full name, and the trunk's number of blocks."""
    for prefix, module in model.named_modules():
        if isinstance(module, ARMTrunk):
            names = [name for name, _ in module.named_parameters()]
            return {f"{prefix}.{n}" if prefix else n: module.layer_depth(n) for n in names}, module.num_layers
    return {}, 0
