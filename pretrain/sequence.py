"""What a sequence is made of: the clusters of one image (ARM), or of several with separators between (STAR section 3).

Legend: N images of a sequence, M clusters of an image, P patches of a cluster, S tokens of a separator, C channels.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

SEPARATOR_TYPES = ("none", "token", "cluster")
SEPARATOR_VALUES = ("zeros", "ones", "embedding", "identity")
SEPARATOR_POSITIONS = ("SC", "CS", "SCS", "CSC")
SEPARATOR = -1  # in the place of a cluster's step


def image_pattern(clusters: int, columns: int, position: str | None) -> list[int]:
    """Steps of an image's clusters and separators, in the order of the sequence (STAR section 3).

    Args:
        columns: clusters of a row.
        position: None without separators; "SC": one before the clusters; "CS": one after; "SCS" and "CSC": one for
            every `columns` clusters, the first before or after them.
    """
    steps = list(range(clusters))
    if position is None:
        return steps
    if position not in SEPARATOR_POSITIONS:
        raise ValueError(f"separator position {position!r} is unknown; give one of {', '.join(SEPARATOR_POSITIONS)}")
    size = clusters if position in ("SC", "CS") else columns
    groups = [steps[start : start + size] for start in range(0, clusters, size)]
    before = position in ("SC", "SCS")
    return [step for group in groups for step in ([SEPARATOR, *group] if before else [*group, SEPARATOR])]


@dataclass(frozen=True)
class Element:
    """A cluster or a separator: `step` in its image's order, or SEPARATOR."""

    image: int
    step: int


class Sequence:
    """Which elements the encoder reads, and which the decoder predicts from those before.

    Without separators the last cluster of an image predicts the first of the next. With them every element is
    predicted from those before it; where a sequence begins with a separator, the last cluster predicts one more, that
    of the image that would follow (STAR equation 7).

    Attributes:
        inputs, targets: elements; target j is predicted from inputs 0 to j.
        query_lengths: tokens of each target.
        visible_lengths: tokens of the encoder that each target sees.
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
        """The tokens of elements, one after the other.

        Args:
            clusters: (B, N, M, P, C) in the order of the sequence; N may be 1 if it is the same for all images.
            separator: (1, S, C).

        Returns:
            (B, L, C)
        """
        batch, images = clusters.shape[:2]
        parts = [
            separator.expand(batch, -1, -1)
            if element.step == SEPARATOR
            else clusters[:, element.image if images > 1 else 0, element.step]
            for element in elements
        ]
        return torch.cat(parts, 1)

    @functools.lru_cache(maxsize=4)  # noqa: B019 a model keeps its sequences as long as it lives
    def visible(self, device: torch.device) -> Tensor:
        """(Lq,) for each predicted token the number of encoder tokens, from the first on, that it sees."""
        pairs = zip(self.query_lengths, self.visible_lengths, strict=True)
        return torch.tensor([visible for length, visible in pairs for _ in range(length)], device=device)

    def most_visible(self, count: int) -> int:
        """The number of encoder tokens that any of the first `count` predicted tokens sees."""
        for length, visible in zip(self.query_lengths, self.visible_lengths, strict=True):
            count -= length
            if count <= 0:
                return visible
        raise ValueError("more tokens than are predicted")

    def of_image(self, image: int) -> Tensor:
        """Places, among the tokens of all targets, of those of an image's clusters, in their order."""
        places, start = [], 0
        for element, length in zip(self.targets, self.query_lengths, strict=True):
            if element.image == image and element.step != SEPARATOR:
                places.append(torch.arange(start, start + length))
            start += length
        return torch.cat(places)


def separator_values(value: str, tokens: int, channels: int) -> Tensor:
    """(1, S, C) constants of a separator (STAR section 3): zeros, ones, or the diagonal tokens ones ("identity").

    A learned "embedding" starts from 0 here.

    Raises:
        ValueError: for another value, or an identity of a number of tokens that is no square.
    """
    if value not in SEPARATOR_VALUES:
        raise ValueError(f"separator value {value!r} is unknown; give one of {', '.join(SEPARATOR_VALUES)}")
    if value == "ones":
        return torch.ones(1, tokens, channels)
    result = torch.zeros(1, tokens, channels)
    if value == "identity":
        side = round(tokens**0.5)
        if side * side != tokens:
            raise ValueError(f"an identity separator needs a square number of tokens, not {tokens}")
        result[:, :: side + 1] = 1
    return result
