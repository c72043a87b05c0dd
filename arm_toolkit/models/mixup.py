"""mmengine data preprocessor with mixup, cutmix and label smoothing."""

from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from timm.data import Mixup

from arm_images.errors import DataError


@MODELS.register_module()
class MixupPreprocessor(BaseDataPreprocessor):
    """Applies timm's mixup, cutmix and label smoothing to training batches, on their device.

    Labels (B,) become distributions (B, classes). Test batches only move to the device.

    Args:
        mixup: arguments of `timm.data.Mixup`, including num_classes.

    Raises:
        DataError: for a training batch of odd size.
    """

    def __init__(self, mixup: dict) -> None:
        super().__init__()
        self.mixup = Mixup(**mixup)

    def forward(self, data: dict, training: bool = False) -> dict:
        data = super().forward(data, training)
        if training:
            count = len(data["inputs"])
            if count % 2:
                raise DataError(f"mixup pairs images, but a batch has {count}; give an even batch_size")
            inputs, labels = self.mixup(data["inputs"], data["data_samples"])
            data = dict(inputs=inputs, data_samples=labels)
        return data
