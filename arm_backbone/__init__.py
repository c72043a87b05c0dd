"""ARM: the Mamba vision backbone of "Autoregressive Pretraining with Mamba in Vision", for dense prediction."""

from importlib.util import find_spec

from .arm import ARCHS
from .pyramid import ARMPyramid

if find_spec("mmengine") is not None:
    from .openmmlab import ARM  # registered, otherwise the same model
else:
    from .arm import ARM

__version__ = "0.1.0"
__all__ = ["ARCHS", "ARM", "ARMPyramid", "__version__"]
