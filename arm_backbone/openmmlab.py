"""The parts that need mmengine: registered models, the learning-rate schedule and the optimizer constructor.

Models are registered in mmengine's root registry, where both mmdet's and mmseg's scopes find them.
"""

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModel, BaseModule, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from mmengine.registry import (
    MODELS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
)
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from . import arm, classifier, pyramid, timm_backbone, vim, vmamba, vmamba_classifier
from .arm import ARMTrunk
from .checkpoint.accounting import Accounting
from .checkpoint.files import model_state, read_checkpoint
from .checkpoint.load import load_trunk
from .optim import find_encoder, parameter_groups, warmup_cosine


def load_pretrained(model: ARMTrunk, path: str) -> Accounting:
    """Load a checkpoint file of any kind with `checkpoint.load.load_trunk`, and log its accounting."""
    accounting = load_trunk(model, model_state(read_checkpoint(path), where=path), path)
    print_log(f"Weights from {path}:\n{accounting}", logger="current")
    return accounting


def _checked_init_cfg(init_cfg: dict | None) -> dict | None:
    if init_cfg is not None and (init_cfg.get("type") != "Pretrained" or "checkpoint" not in init_cfg):
        raise ValueError(f"init_cfg={init_cfg!r}: give dict(type='Pretrained', checkpoint=PATH), or None for scratch")
    return init_cfg


class _Backbone:
    """What makes a backbone one of OpenMMLab: its initialisation."""

    def __init__(self, *args, init_cfg: dict | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.init_cfg = _checked_init_cfg(init_cfg)

    def init_weights(self) -> None:
        """Load the checkpoint of `init_cfg`; without one, keep the constructor's initialisation."""
        if self.init_cfg is not None and not self.is_init:
            load_pretrained(self, self.init_cfg["checkpoint"])
        self._is_init = True


@MODELS.register_module(name="ARM")
class ARM(_Backbone, arm.ARM, BaseModule):
    """`arm_backbone.arm.ARM` for OpenMMLab.

    Args:
        init_cfg: None (from scratch), or dict(type="Pretrained", checkpoint=PATH) with an ARM checkpoint of any kind.
            Unlike in mmengine's own loading, a checkpoint that does not match the model is an error.
    """


class Classifier:
    """What makes a classifier one of OpenMMLab: its initialisation, and its loss and predictions."""

    is_init = BaseModel.is_init  # mmengine's record

    def __init__(self, *args, data_preprocessor: dict | None = None, init_cfg: dict | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.data_preprocessor = MODELS.build(data_preprocessor or dict(type="BaseDataPreprocessor"))
        self.init_cfg = _checked_init_cfg(init_cfg)

    def init_weights(self) -> None:
        """Load the checkpoint of `init_cfg`; without one, keep the constructor's initialisation."""
        if self.init_cfg is not None and not self.is_init:
            accounting = load_pretrained(self, self.init_cfg["checkpoint"])
            if "head.weight" in accounting.new:
                nn.init.normal_(self.head.weight, std=2e-5)
        self._is_init = True

    def forward(self, inputs: Tensor, data_samples: Tensor | None = None, mode: str = "tensor"):
        """Loss or logits of images.

        Args:
            inputs: normalized images (B, in_chans, H, W).
            data_samples: for the loss, labels (B,) or class probabilities (B, num_classes).
            mode: "loss", "tensor" or "predict".

        Returns:
            "loss": dict(loss=cross entropy); "tensor": logits (B, num_classes); "predict": a list of B float32 logits
            (num_classes,).
        """
        logits = super().forward(inputs)
        if mode == "loss":
            return dict(loss=F.cross_entropy(logits.float(), data_samples))
        return list(logits.float()) if mode == "predict" else logits


@MODELS.register_module(name="ARMClassifier")
class ARMClassifier(Classifier, classifier.ARMClassifier, BaseModel):
    """`arm_backbone.classifier.ARMClassifier` for OpenMMLab.

    Args:
        data_preprocessor: configuration of mmengine's data preprocessor.
        init_cfg: as in `ARM`. A head that the checkpoint does not contain is initialised with std 2e-5, as in the
            reference code.
    """


@MODELS.register_module()
class LinearProbe(ARMClassifier):
    """MAE's linear probing: a frozen encoder, a BatchNorm without parameters, and a linear head that is trained.

    This model exists for OpenMMLab only.
    """

    head_std = 0.01

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.requires_grad_(False)
        self.head = nn.Sequential(
            nn.BatchNorm1d(self.embed_dims, affine=False, eps=1e-6), nn.Linear(self.embed_dims, self.num_classes)
        )
        classifier.reset_head(self.head, self.head_std)

    def train(self, mode: bool = True) -> "LinearProbe":
        super().train(False)  # the frozen encoder stays in evaluation mode
        self.head.train(mode)
        self.training = mode
        return self

    def forward_features(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward_features(images)


@MODELS.register_module(name="Vim")
class Vim(vim.Vim, ARM):
    """`arm_backbone.vim.Vim` for OpenMMLab; `init_cfg` is that of `ARM`, with a checkpoint of Vim."""


@MODELS.register_module(name="VimClassifier")
class VimClassifier(vim.VimClassifier, ARMClassifier):
    """`arm_backbone.vim.VimClassifier` for OpenMMLab, as `ARMClassifier` is for ARM."""


@MODELS.register_module()
class VimLinearProbe(vim.VimClassifier, LinearProbe):
    """`LinearProbe` of Vim."""


@MODELS.register_module(name="VMamba")
class VMamba(_Backbone, vmamba.VMamba, BaseModule):
    """`arm_backbone.vmamba.VMamba` for OpenMMLab; `init_cfg` is that of `ARM`, with a checkpoint of VMamba."""


@MODELS.register_module(name="VMambaClassifier")
class VMambaClassifier(Classifier, vmamba_classifier.VMambaClassifier, BaseModel):
    """`arm_backbone.vmamba_classifier.VMambaClassifier` for OpenMMLab, as `ARMClassifier` is for ARM."""


class _TimmWeights:
    """Weights from `init_cfg`: None (from scratch), or dict(type="Pretrained", checkpoint=...) with "timm" for timm's
    own weights, or a file, a published folder or a name on the hub."""

    def init_weights(self) -> None:
        """Load the weights of `init_cfg`; without it, keep timm's initialisation."""
        if self.init_cfg is not None and not self.is_init:
            path = self.init_cfg["checkpoint"]
            print_log(f"Weights from {path}: {self.load(path)}", logger="current")
        self._is_init = True


@MODELS.register_module(name="TimmBackbone")
class TimmBackbone(_TimmWeights, _Backbone, timm_backbone.TimmBackbone, BaseModule):
    """`arm_backbone.timm_backbone.TimmBackbone` for OpenMMLab; `init_cfg` as in `_TimmWeights`."""


@MODELS.register_module(name="TimmClassifier")
class TimmClassifier(_TimmWeights, Classifier, timm_backbone.TimmClassifier, BaseModel):
    """`arm_backbone.timm_backbone.TimmClassifier` for OpenMMLab; `init_cfg` as in `_TimmWeights`.

    Args:
        data_preprocessor: configuration of mmengine's data preprocessor.
    """


@MODELS.register_module(name="ARMPyramid")
class ARMPyramid(pyramid.ARMPyramid, BaseModule):
    """`arm_backbone.pyramid.ARMPyramid` for OpenMMLab."""


@MODELS.register_module(name="ARMSimpleFPN")
class ARMSimpleFPN(pyramid.ARMSimpleFPN, BaseModule):
    """`arm_backbone.pyramid.ARMSimpleFPN` for OpenMMLab."""


@MODELS.register_module(name="LN2d")
class LN2d(LayerNorm2d):
    """LayerNorm over the channels of maps (B, C, H, W), as a `norm_cfg` of OpenMMLab's layers."""

    _abbr_ = "ln"  # names the layer in mmcv


@PARAM_SCHEDULERS.register_module()
class WarmupCosineLR(_ParamScheduler):
    """`arm_backbone.optim.warmup_cosine` times the peak learning rate of each parameter group.

    Args:
        warmup: length of the warm-up in epochs; set convert_to_iter_based=True to update every iteration.
        end: length of the schedule in epochs; by default mmengine fills in the length of the training.
        floor: final learning rate as a fraction of the peak.

    Raises:
        ValueError: if the warm-up is not shorter than the schedule.
    """

    def __init__(
        self,
        optimizer: OptimWrapper,
        warmup: float,
        end: float,
        floor: float = 0.0,
        last_step: int = -1,
        by_epoch: bool = True,
    ) -> None:
        if not 0 <= warmup < end:
            raise ValueError(f"warmup={warmup} must be shorter than the training (end={end})")
        self.warmup, self.total, self.floor = warmup, end, floor
        super().__init__(optimizer, "lr", last_step=last_step, by_epoch=by_epoch)

    @classmethod
    def build_iter_from_epoch(
        cls, *args, warmup: float, end: float, epoch_length: int, by_epoch: bool = True, **kwargs
    ) -> "WarmupCosineLR":
        return cls(*args, warmup=warmup * epoch_length, end=end * epoch_length, by_epoch=False, **kwargs)

    def _get_value(self) -> list[float]:
        factor = warmup_cosine(self.last_step, self.warmup, self.total, self.floor)
        return [peak * factor for peak in self.base_values]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ARMOptimWrapperConstructor:
    """Builds the optimizer with weight-decay exemption by name and layer-wise learning-rate decay.

    Args:
        optim_wrapper_cfg: mmengine's configuration, with the key `optimizer`.
        paramwise_cfg: `layer_decay` (1.0: none; needs a model with an encoder that knows the depth of its parameters,
            see `arm_backbone.optim.find_encoder`) and `decay_exempt` ("dense", "reference" or "timm", see
            `arm_backbone.optim.is_decayed`); no other keys. Parameters that the encoder names in `no_weight_decay` are
            exempt too.

    Raises:
        ValueError: for an unknown key, or for layer_decay in a model without such an encoder.
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
        prefix, encoder = find_encoder(model)
        if encoder is None and layer_decay != 1.0:
            raise ValueError(
                f"paramwise_cfg.layer_decay={layer_decay} needs an encoder with layer_depth, such as ARM; "
                "the model has none"
            )
        depth, exempt = {}, set()
        if encoder is not None:
            depth = {prefix + name: encoder.layer_depth(name) for name, _ in encoder.named_parameters()}
            exempt = {prefix + name for name in encoder.no_weight_decay()}
        optimizer_cfg = self.optimizer_cfg.copy()
        optimizer_cfg["params"] = parameter_groups(
            model.named_parameters(),
            depth,
            encoder.num_layers if encoder is not None else 0,
            lr=optimizer_cfg["lr"],
            weight_decay=optimizer_cfg.get("weight_decay", 0.0),
            layer_decay=layer_decay,
            rule=self.paramwise_cfg.get("decay_exempt", "dense"),
            exempt=exempt,
        )
        optimizer = OPTIMIZERS.build(optimizer_cfg)
        return OPTIM_WRAPPERS.build(
            {"type": "OptimWrapper", **self.optim_wrapper_cfg}, default_args=dict(optimizer=optimizer)
        )
