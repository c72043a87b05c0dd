"""Pretraining for mmengine (imported as `arm_pretrain`): autoregressive (ARM, STAR), MAE and MoCo v3.

`arm_pretrainer` combines the parts: `clusters`, `sequence`, `separators`, `decoder`, and `targets` or `tokenizers`.
`mae` combines `masking`, `mae_decoder` and `targets`; `moco` combines `views` and `moco_heads`.
`data` crops the images. `protocol` describes what tools and hooks need of a pretraining model.
"""

from .arm_pretrainer import ARMPretrainer
from .data import ImageCrops
from .mae import MAEPretrainer
from .moco import MoCoPretrainer, MomentumHook
from .tokenizers import DVAETokenizer, KMeansTokenizer
from .views import ImageViews, ViewsPreprocessor

__all__ = [
    "ARMPretrainer",
    "DVAETokenizer",
    "ImageCrops",
    "ImageViews",
    "KMeansTokenizer",
    "MAEPretrainer",
    "MoCoPretrainer",
    "MomentumHook",
    "ViewsPreprocessor",
]
