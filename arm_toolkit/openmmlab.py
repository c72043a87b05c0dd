"""Registers the toolkit with mmengine; configurations name this module in `custom_imports`.

Heads for mmdet (`models.float32_heads`, `models.instance_tta`) and for classification (`datasets.class_folder`,
`evaluation.accuracy`, `models.mixup`) are named by the configurations that use them.
"""

from .analysis import reconstruction_hook  # noqa: F401
from .datasets import samplers, transforms  # noqa: F401
from .engine import ema_hook, finite_loss_hook, loops, optim_wrapper, runner  # noqa: F401
