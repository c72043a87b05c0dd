"""Autoregressive pretraining of ARM as an mmengine model and data set (imported as `arm_pretrain`)."""

from .arm_pretrainer import ARMPretrainer
from .data import ImageCrops
from .tokenizers import DVAETokenizer, KMeansTokenizer

__all__ = ["ARMPretrainer", "DVAETokenizer", "ImageCrops", "KMeansTokenizer"]
