"""Interfaces of a pretraining model for tools, hooks and sharding, in addition to mmengine's `forward`.

Every model trains without them. Whatever needs an interface raises one line if the model does not have it.

Legend: B images.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@dataclass(frozen=True)
class Reconstruction:
    """Images as a model predicts them.

    Attributes:
        columns: title -> normalized images (B, 3, H, W); the first entry is the one whose error is shown.
        note: what a reader must know to judge them; "" for nothing.
    """

    columns: dict[str, Tensor]
    note: str = ""


@runtime_checkable
class Reconstructs(Protocol):
    """A model that shows its predictions, in `tools/reconstruct.py` and `ReconstructionHook`.

    Attributes:
        images_per_sequence: the batch of `losses_by_position` must be a multiple of it; 1 if images are independent.
        units_per_image: prediction units of an image (ARM: clusters).
        predicts_pixels: whether `reconstruct` is possible.
    """

    images_per_sequence: int
    units_per_image: int
    predicts_pixels: bool

    def losses_by_position(self, images: Tensor) -> dict[str, float]:
        """Mean training loss of normalized images (B, 3, H, W), split by position in the image."""

    def reconstruct(self, images: Tensor, given: int) -> Reconstruction:
        """Predict normalized images (B, 3, H, W).

        Args:
            given: number of true units that a model starts from when it continues with its own predictions.

        Raises:
            ValueError: if `predicts_pixels` is False, or `given` is out of range.
        """


@runtime_checkable
class Shardable(Protocol):
    """A model that `model_wrapper_cfg = dict(type="fully_shard")` can distribute over processes.

    Attributes:
        sharded_methods: names of the methods, other than `forward`, that are called from outside and use the weights.
    """

    sharded_methods: tuple[str, ...]

    def shard_units(self) -> list[nn.Module]:
        """The modules whose weights are gathered together, one module at a time; usually the blocks."""
