"""ARM: the Mamba vision backbone of "Autoregressive Pretraining with Mamba in Vision", for dense prediction."""

from importlib.util import find_spec

from . import timm_models  # noqa: F401 registers its models with timm
from .arm import ARCHS
from .pyramid import ARMPyramid

if find_spec("mmengine") is not None:
    from .openmmlab import ARM, ARMClassifier  # registered, otherwise the same models
else:
    from .arm import ARM
    from .classifier import ARMClassifier

__version__ = "0.1.0"
__all__ = ["ARCHS", "ARM", "ARMClassifier", "ARMPyramid", "__version__"]
