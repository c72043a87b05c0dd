"""Measures by k nearest neighbours how good the features of a configuration's encoder are (`tools/knn.py`)."""

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from arm_backbone.checkpoint.accounting import shorten
from arm_backbone.checkpoint.errors import CheckpointError

from ..engine.checks import check_data_paths, config_errors
from ..errors import ConfigError
from ..evaluation.knn import knn_accuracy
from ..evaluation.knn_patches import knn_iou


def measure_images(cfg: Config, checkpoint: str | None, k: int, temperature: float) -> dict[str, float]:
    """Top-1 accuracy in percent of a classification configuration's test images.

    Args:
        checkpoint: the encoder's weights, of any kind; None is random weights.
        k, temperature: see `evaluation.knn.vote`.

    Raises:
        ConfigError: if the configuration has no class folders as test data.
        CheckpointError: if the weights do not fit, lack what the features are read through, or the features are not
            finite.
        DataError: if data is missing.
    """
    if cfg.get("test_dataloader") is None or cfg.test_dataloader.dataset.type != "ClassFolder":
        raise ConfigError(
            f"{cfg.filename} has neither a ClassFolder as test data nor a segmentor; give a configuration of "
            "cls_configs/ or seg_configs/"
        )
    check_data_paths(cfg, ("test_dataloader",))
    cfg.model.update(init_cfg=_start(checkpoint), with_cp=False)
    with config_errors(cfg, "model"):
        model = MODELS.build(cfg.model)
    marked = {} if checkpoint is None else _mark_readers(model)
    model.init_weights()
    _require_loaded(model, marked, checkpoint)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return {"top-1": knn_accuracy(model, cfg.test_dataloader, k, temperature)}


def _reads(model: nn.Module, name: str) -> bool:
    """Whether features are read through this parameter: the class token, or a pooling by attention."""
    if name == "cls_token":
        return model.global_pool == "token"
    return name.startswith(("attn_pool.", "model.attn_pool.", "model.head.cls_token", "model.head.k.", "model.head.v."))


@torch.no_grad()
def _mark_readers(model: nn.Module) -> dict[str, Tensor]:
    """Give the parameters that features are read through values that no checkpoint has, and return these by name."""
    readers = {name: parameter for name, parameter in model.named_parameters() if _reads(model, name)}
    return {name: parameter.fill_(torch.pi).clone() for name, parameter in readers.items()}


def _require_loaded(model: nn.Module, marked: dict[str, Tensor], checkpoint: str | None) -> None:
    random = [name for name, tensor in marked.items() if torch.equal(tensor, model.get_parameter(name))]
    if random:
        raise CheckpointError(
            f"{checkpoint} lacks {shorten(random)}, through which the features are read, so they would be random; pool "
            "the patches: model.global_pool=avg (Vim: cls_configs/vim_b_linear.py), or model.num_classes=0 for AIM"
        )


def measure_patches(cfg: Config, checkpoint: str | None, k: int, temperature: float) -> dict[str, float]:
    """mIoU in percent of a segmentation configuration's test images.

    Args:
        checkpoint: the backbone's weights, in any form that its `init_cfg` takes; None is random weights.
        k, temperature: see `evaluation.knn.vote`.

    Raises:
        CheckpointError: if the weights do not fit, or the features are not finite.
        DataError: if data is missing.
    """
    check_data_paths(cfg, ("train_dataloader", "test_dataloader"))
    cfg.model.backbone.update(init_cfg=_start(checkpoint), with_cp=False)
    with config_errors(cfg, "model"), DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    model.backbone.init_weights()
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return dict(mIoU=float(np.nanmean(knn_iou(model, cfg, k, temperature))))


def _start(checkpoint: str | None) -> dict | None:
    return None if checkpoint is None else dict(type="Pretrained", checkpoint=checkpoint)
