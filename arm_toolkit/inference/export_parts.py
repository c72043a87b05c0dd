"""What an exported file computes: a whole model or a part of it, from images (B, 3, H, W) to named tensors.

Legend: B batch, H, W image height and width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arm_backbone.arm import ARM
from arm_backbone.classifier import ARMClassifier

from ..errors import ConfigError

PARTS = ("model", "pyramid", "backbone")


class Part(nn.Module):
    """Images to a tuple of tensors, named by `outputs`.

    Attributes:
        outputs: a name and a description for each tensor.
        task: "classification", "segmentation", "detection" or "features".
    """

    outputs: dict[str, str]
    task = "features"

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        pool_any_size(model)
        self.model = model

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
    """The last block's tokens of a classifier after its norm, as a map."""

    outputs = {"map0": "(batch, channels, height, width), the last block's patches after the last norm"}

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
    segments, detects = hasattr(model, "decode_head"), hasattr(model, "rpn_head") or hasattr(model, "bbox_head")
    if part == "backbone" and hasattr(model, "backbone"):
        model = model.backbone
        return Backbone(model, len(getattr(model, "out_indices", (0,))), "the backbone")
    if part in (None, "backbone") and isinstance(model, ARM):
        return Backbone(model, len(model.out_indices), "the backbone")
    if part == "backbone" and isinstance(model, ARMClassifier):
        return LastMap(model)
    if part in (None, "model") and isinstance(model, ARMClassifier):
        return Classify(model) if model.num_classes else Pooled(model)
    if part in (None, "model") and segments:
        return Segment(model)
    if part == "model" and detects:
        raise ConfigError(
            f"{where}: the heads of a detector cannot be exported (mmdet chooses proposals in Python, image by image, "
            "and how many NMS keeps depends on the image); leave --part out to export backbone and pyramid"
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
        self.outputs, self.task, self.flip = part.outputs, part.task, channels == "BGR"
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        images = images.flip(1) if self.flip else images
        return self.model((images.to(self.mean.dtype) - self.mean) / self.std)


# ------------------------------------------------------------------------------------------ pooling of maps of any size


class AnySizeMean(nn.AdaptiveAvgPool2d):
    """`nn.AdaptiveAvgPool2d`, which an exported program computes for maps of any size, as two matrix products.

    ONNX has average pooling with windows of one size only; those of adaptive pooling differ unless the size divides.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting():
            return super().forward(x)
        height, width = (self.output_size,) * 2 if isinstance(self.output_size, int) else self.output_size
        return _windows(x.shape[2], height, x) @ x @ _windows(x.shape[3], width, x).t()


def _windows(size: int, number: int, like: Tensor) -> Tensor:
    """(number, size): row i averages the positions from floor(i size / number) to ceil((i + 1) size / number)."""
    i = torch.arange(number, device=like.device).unsqueeze(1)
    first, end = i * size // number, ((i + 1) * size + number - 1) // number
    position = torch.arange(size, device=like.device)
    inside = (position >= first) & (position < end)
    return inside.to(like.dtype) / (end - first)


class AnySizeHalf(nn.MaxPool2d):
    """`nn.MaxPool2d(2, 2, ceil_mode=True)`, which an exported program computes for even and odd maps.

    PyTorch's own asks whether the last window begins inside the map, and the program would hold for one answer only.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting():
            return super().forward(x)
        padded = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), value=-torch.inf)
        return F.max_pool2d(padded, 2, 2)


def pool_any_size(model: nn.Module) -> None:
    """Replace the pooling layers of a model by those above; they compute the same when they are called."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.AdaptiveAvgPool2d:
                setattr(module, name, AnySizeMean(child.output_size))
            elif type(child) is nn.MaxPool2d and (child.kernel_size, child.stride, child.ceil_mode) == (2, 2, True):
                setattr(module, name, AnySizeHalf(2, 2, ceil_mode=True))
