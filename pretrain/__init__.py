"""Autoregressive pretraining of ARM and STAR for mmengine (imported as `arm_pretrain`).

`arm_pretrainer` combines the parts: `clusters`, `sequence`, `separators`, `decoder`, and `targets` or `tokenizers`.
`data` crops the images. `protocol` describes what tools and hooks need of a pretraining model.
"""

from .arm_pretrainer import ARMPretrainer
from .data import ImageCrops
from .tokenizers import DVAETokenizer, KMeansTokenizer

__all__ = ["ARMPretrainer", "DVAETokenizer", "ImageCrops", "KMeansTokenizer"]
