"""What an exported file computes: a whole model or a part of it, from images (B, 3, H, W) to named tensors.

Legend: B batch, H, W image height and width.
"""

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor, nn

from arm_backbone.arm import ARM
from arm_backbone.timm_backbone import TimmBackbone, TimmClassifier
from arm_backbone.vmamba import VMamba

from ..errors import ConfigError

PARTS = ("model", "pyramid", "backbone")


class Part(nn.Module):
    """Images to a tuple of tensors, named by `outputs`.

    Attributes:
        outputs: a name and a description for each tensor.
        task: "classification", "segmentation", "detection" or "features".
        multiple: sides of images must be multiples of this, as a vision transformer of timm wants whole patches.
    """

    outputs: dict[str, str]
    task = "features"

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.multiple = max(to_2tuple(getattr(getattr(model, "patch_embed", None), "patch_size", 1)))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError


class Classify(Part):
    """Logits of an image classifier."""

    outputs = {"logits": "(batch, classes), before softmax"}
    task = "classification"

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.model(images),)


class Pooled(Classify):
    """The pooled features of a classifier without a head."""

    outputs = {"features": "(batch, channels), pooled"}
    task = "features"


class Segment(Part):
    """Labels and logits of a segmentor for the whole image, at its size; no sliding window."""

    outputs = {
        "labels": "(batch, height, width), int64: the class of each pixel",
        "logits": "(batch, classes, height, width), before softmax",
    }
    task = "segmentation"

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        head = self.model.decode_head
        logits = head(self.model.extract_feat(images))
        logits = F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=head.align_corners)
        if head.out_channels == 1:
            return (logits.sigmoid() > head.threshold).squeeze(1).long(), logits
        return logits.argmax(1), logits


class Maps(Part):
    """Feature maps, one for each level."""

    def __init__(self, model: nn.Module, levels: int, what: str) -> None:
        super().__init__(model)
        self.outputs = {f"map{i}": f"(batch, channels, height, width) of level {i} of {what}" for i in range(levels)}


class Pyramid(Maps):
    """The maps that a detector's or segmentor's heads read: backbone and neck."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.extract_feat(images))


class Backbone(Maps):
    """The backbone's maps."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model(images))


class LastMap(Part):
    """The last map of a classifier, after its norm."""

    outputs = {"map0": "(batch, channels, height, width), the last block's or stage's output after the last norm"}

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True))


def make_part(model: nn.Module, part: str | None, where: str) -> Part:
    """The part of a model that a file will hold.

    Args:
        model: in evaluation mode.
        part: one of `PARTS`; None: all that can be exported.
        where: the model's name, for messages.

    Raises:
        ConfigError: for a part that the model does not have or that cannot be exported; it says why.
    """
    if isinstance(model, TimmClassifier):
        model = model.model
    classifies = hasattr(model, "reset_classifier")  # as every model of timm
    segments, detects = hasattr(model, "decode_head"), hasattr(model, "rpn_head") or hasattr(model, "bbox_head")
    if part == "backbone" and hasattr(model, "backbone"):
        model = model.backbone
        return Backbone(model, len(getattr(model, "out_indices", (0,))), "the backbone")
    if part in (None, "backbone") and isinstance(model, (ARM, VMamba, TimmBackbone)):
        return Backbone(model, len(model.out_indices), "the backbone")
    if part == "backbone" and classifies and hasattr(model, "forward_intermediates"):
        return LastMap(model)
    if part in (None, "model") and classifies:
        return Classify(model) if model.num_classes else Pooled(model)
    if part in (None, "model") and segments:
        return Segment(model)
    if part == "model" and detects:
        raise ConfigError(
            f"{where}: the heads of a detector cannot be exported, because torch.export records no branch on values "
            "(mmdet's RPN head asks of each image which boxes are valid); leave --part out for backbone and pyramid"
        )
    if part in (None, "pyramid") and (detects or segments):
        levels = getattr(getattr(model, "neck", None), "num_outs", None)
        return Pyramid(model, levels or _levels(model), "the pyramid")
    kind = type(model).__name__
    if part is None:
        raise ConfigError(f"{where}: a {kind} cannot be exported; give a detector, segmentor, classifier or backbone")
    raise ConfigError(f"--part {part}: a {kind} has no such part; leave --part out to export all that it can")


def _levels(model: nn.Module) -> int:
    with torch.no_grad():
        return len(model.extract_feat(torch.zeros(1, 3, 64, 64)))


# ------------------------------------------------------------------------------------------- pixels as they are read


class FromPixels(Part):
    """A part that takes RGB pixels, uint8, 0 to 255, and normalizes them itself.

    Args:
        mean, std: of each channel, on the scale 0 to 255, in the order that the model takes.
        channels: that order, "RGB" or "BGR".
    """

    def __init__(self, part: Part, mean: list[float], std: list[float], channels: str) -> None:
        super().__init__(part)
        self.outputs, self.task, self.multiple, self.flip = part.outputs, part.task, part.multiple, channels == "BGR"
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        images = images.flip(1) if self.flip else images
        return self.model((images.to(self.mean.dtype) - self.mean) / self.std)
