"""The interface of a pretraining model for tools and hooks, in addition to mmengine's `forward`.

A model can be trained without it; tools and hooks that need it raise a one-line error for such a model. (The interface
for sharding is `arm_toolkit.engine.fsdp.Shardable`.)

Legend: B images.
"""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class Reconstruction:
    """Images as a model predicts them.

    Attributes:
        columns: title -> normalized images (B, 3, H, W); the error is shown for the first entry.
        note: what a reader must know to judge the images, or "".
        seen: title -> what the model has seen of the images, normalized (B, 3, H, W); empty if it saw all.
    """

    columns: dict[str, Tensor]
    note: str = ""
    seen: dict[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Reconstructs(Protocol):
    """A model that shows its predictions, in `tools/reconstruct.py` and `ReconstructionHook`.

    Attributes:
        images_per_sequence: the batch of `losses_by_position` must be a multiple of it; 1 if images are independent.
        units_per_image: units of an image that are predicted one after the other (ARM: clusters); None for a model that
            predicts all at once (MAE).
        predicts_pixels: whether `reconstruct` is possible.
    """

    images_per_sequence: int
    units_per_image: int | None
    predicts_pixels: bool

    def losses_by_position(self, images: Tensor) -> dict[str, float]:
        """Mean training loss of normalized images (B, 3, H, W), split by position in the image."""

    def reconstruct(self, images: Tensor, given: int | None) -> Reconstruction:
        """Predict normalized images (B, 3, H, W).

        Args:
            given: number of true units after which the model continues from its own predictions; None for a model that
                predicts all at once.

        Raises:
            ValueError: if `predicts_pixels` is False, or `given` is out of range.
        """
