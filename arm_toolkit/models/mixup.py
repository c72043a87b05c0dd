"""Mixup, cutmix and label smoothing as a data preprocessor."""

from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from timm.data import Mixup

from arm_images.errors import DataError


@MODELS.register_module()
class MixupPreprocessor(BaseDataPreprocessor):
    """In training: timm's mixup and cutmix of a batch on its device, and label smoothing; labels become distributions.

    Args:
        mixup: arguments of `timm.data.Mixup`, num_classes among them.
    """

    def __init__(self, mixup: dict) -> None:
        super().__init__()
        self.mixup = Mixup(**mixup)

    def forward(self, data: dict, training: bool = False) -> dict:
        data = super().forward(data, training)
        if training:
            if len(data["inputs"]) % 2:
                raise DataError(f"mixup pairs images: the batch of {len(data['inputs'])} on a device must be even")
            inputs, labels = self.mixup(data["inputs"], data["data_samples"])
            data = dict(inputs=inputs, data_samples=labels)
        return data
