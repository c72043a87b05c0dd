"""Pretraining of ARM for mmengine (imported as `arm_pretrain`): autoregressive (ARM, STAR) and by masking (MAE).

`arm_pretrainer` combines the parts: `clusters`, `sequence`, `separators`, `decoder`, and `targets` or `tokenizers`.
`mae` combines `masking`, `mae_decoder` and `targets`.
`data` crops the images. `protocol` describes what tools and hooks need of a pretraining model.
"""

from .arm_pretrainer import ARMPretrainer
from .data import ImageCrops
from .mae import MAEPretrainer
from .tokenizers import DVAETokenizer, KMeansTokenizer

__all__ = ["ARMPretrainer", "DVAETokenizer", "ImageCrops", "KMeansTokenizer", "MAEPretrainer"]
