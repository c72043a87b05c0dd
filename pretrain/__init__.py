"""Autoregressive pretraining of ARM and STAR for mmengine (imported as `arm_pretrain`).

`arm_pretrainer` puts the parts together: `clusters`, `sequence`, `separators`, `decoder`, and `targets` or
`tokenizers`. `data` makes the crops. `protocol` says what a pretraining model needs to work with the tools and hooks.
"""

from .arm_pretrainer import ARMPretrainer
from .data import ImageCrops
from .tokenizers import DVAETokenizer, KMeansTokenizer

__all__ = ["ARMPretrainer", "DVAETokenizer", "ImageCrops", "KMeansTokenizer"]
