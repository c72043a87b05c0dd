"""Sequences: the clusters of one image (ARM section 3.2), or of several with separators between them (STAR section 3).

Legend: B sequences, N images of a sequence, M clusters of an image, P patches of a cluster, S tokens of a separator,
L encoder tokens, Lq predicted tokens, C channels.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from .separators import SEPARATOR


@dataclass(frozen=True)
class Element:
    """A cluster or a separator of a sequence.

    Attributes:
        image: index of its image in the sequence.
        step: position of the cluster in the order of its image, or SEPARATOR.
    """

    image: int
    step: int


class Sequence:
    """The elements that the encoder reads, and those that the decoder predicts from the preceding ones.

    Without separators, the last cluster of an image predicts the first cluster of the next image. If the sequence
    starts with a separator, its last cluster predicts the separator of the image that would follow (STAR equation 7).

    Args:
        images: N.
        pattern: from `image_pattern`.
        patches: P.
        separator_tokens: S, 0 without separators.

    Attributes:
        inputs: elements that the encoder reads.
        targets: elements that are predicted; target j is predicted from inputs 0 to j.
        query_lengths: number of tokens of each target.
        visible_lengths: number of encoder tokens that each target is predicted from.
    """

    def __init__(self, images: int, pattern: list[int], patches: int, separator_tokens: int) -> None:
        elements = [Element(image, step) for image in range(images) for step in pattern]
        self.targets = elements[1:]
        self.inputs = elements[:-1]
        if pattern[0] == SEPARATOR:
            self.targets, self.inputs = [*self.targets, Element(images, SEPARATOR)], elements

        def length(element: Element) -> int:
            return separator_tokens if element.step == SEPARATOR else patches

        self.query_lengths = [length(element) for element in self.targets]
        input_lengths = [length(element) for element in self.inputs]
        self.visible_lengths = [sum(input_lengths[: j + 1]) for j in range(len(input_lengths))]
        self.images = images

    def assemble(self, elements: list[Element], clusters: Tensor, separator: Tensor | None) -> Tensor:
        """Concatenate the tokens of elements.

        Args:
            elements: `inputs` or `targets`.
            clusters: (B, N, M, P, C), clusters in the order of the sequence; N may be 1 if all images share them.
            separator: (1, S, C); None without separators.

        Returns:
            (B, L or Lq, C)
        """
        batch, images = clusters.shape[:2]
        parts = [
            separator.expand(batch, -1, -1)
            if element.step == SEPARATOR
            else clusters[:, element.image if images > 1 else 0, element.step]
            for element in elements
        ]
        return torch.cat(parts, 1)

    @functools.lru_cache(maxsize=4)  # noqa: B019 a model keeps its sequences anyway
    def visible(self, device: torch.device) -> Tensor:
        """(Lq,) int64: predicted token i may attend to the first `visible[i]` encoder tokens."""
        pairs = zip(self.query_lengths, self.visible_lengths, strict=True)
        return torch.tensor([visible for length, visible in pairs for _ in range(length)], device=device)

    def most_visible(self, count: int) -> int:
        """The largest number of encoder tokens that any of the first `count` predicted tokens may attend to."""
        for length, visible in zip(self.query_lengths, self.visible_lengths, strict=True):
            count -= length
            if count <= 0:
                return visible
        raise ValueError("count exceeds the number of predicted tokens")

    def of_image(self, image: int) -> Tensor:
        """Indices, among the predicted tokens, of an image's cluster tokens, in the order of the sequence."""
        places, start = [], 0
        for element, length in zip(self.targets, self.query_lengths, strict=True):
            if element.image == image and element.step != SEPARATOR:
                places.append(torch.arange(start, start + length))
            start += length
        return torch.cat(places)
