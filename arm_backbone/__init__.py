"""ARM, the Mamba vision backbone of "Autoregressive Pretraining with Mamba in Vision", for dense prediction.

If mmengine is installed, importing this package imports mmengine, and the models are the registered subclasses in
`arm_backbone.openmmlab`, with the same weights and outputs. Otherwise they are the plain modules, which are always
available, for example as `arm_backbone.arm.ARM` and `arm_backbone.classifier.ARMClassifier`.
"""

from importlib.util import find_spec

from . import aim, timm_models  # noqa: F401 register their models with timm
from .arm import ARCHS
from .parameters import init_parameters
from .pyramid import ARMPyramid

if find_spec("mmengine") is not None:
    from .openmmlab import ARM, ARMClassifier, Vim, VimClassifier, VMamba, VMambaClassifier
else:
    from .arm import ARM
    from .classifier import ARMClassifier
    from .vim import Vim, VimClassifier
    from .vmamba import VMamba
    from .vmamba_classifier import VMambaClassifier

__version__ = "0.1.0"
__all__ = [
    "ARCHS",
    "ARM",
    "ARMClassifier",
    "ARMPyramid",
    "VMamba",
    "VMambaClassifier",
    "Vim",
    "VimClassifier",
    "__version__",
    "init_parameters",
]
