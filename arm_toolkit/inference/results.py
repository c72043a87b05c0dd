"""What a model says about an image: arrays, names and scores, in pixels of the upright image.

Legend: n objects, H x W pixels, C classes.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import supervision


@dataclass(frozen=True, eq=False)
class DetectionResult:
    """Objects in one image, in descending score.

    Attributes:
        boxes: (n, 4) float32, x1, y1, x2, y2.
        scores: (n,) float32, 0 to 1.
        labels: (n,) int64, numbers of classes.
        masks: (n, H, W) bool; None for a detector without masks.
        classes: the names of all C classes.
        size: (H, W).
        path: the image's file, None if it has none.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None
    classes: tuple[str, ...]
    size: tuple[int, int]
    path: str | None = None

    @property
    def names(self) -> list[str]:
        """The class name of each object."""
        return [self.classes[label] for label in self.labels]

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> "DetectionResult":
        """The objects with at least this score."""
        kept = self.scores >= score
        masks = None if self.masks is None else self.masks[kept]
        return replace(self, boxes=self.boxes[kept], scores=self.scores[kept], labels=self.labels[kept], masks=masks)

    def to_supervision(self) -> "supervision.Detections":
        import supervision

        return supervision.Detections(
            xyxy=self.boxes,
            mask=self.masks,
            confidence=self.scores,
            class_id=self.labels,
            data=dict(class_name=np.array(self.names, dtype=str)),
        )


@dataclass(frozen=True, eq=False)
class SegmentationResult:
    """The class of every pixel of one image.

    Attributes:
        labels: (H, W) uint8, or uint16 for more than 256 classes: numbers of classes, from 0.
        scores: (H, W) float32, the probability of the pixel's class; None with test-time augmentation.
        classes: the names of all C classes.
        path: the image's file, None if it has none.
    """

    labels: np.ndarray
    scores: np.ndarray | None
    classes: tuple[str, ...]
    path: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.labels.shape

    @property
    def names(self) -> list[str]:
        """The names of the classes that occur, in the order of their numbers."""
        return [self.classes[label] for label in np.unique(self.labels)]

    def shares(self) -> dict[str, float]:
        """Name of each class that occurs -> share of the pixels, 0 to 1."""
        labels, counts = np.unique(self.labels, return_counts=True)
        return {self.classes[label]: count / self.labels.size for label, count in zip(labels, counts.tolist())}

    def to_supervision(self) -> "supervision.Detections":
        """One detection with a mask per class that occurs."""
        import supervision

        present = np.unique(self.labels)
        masks = self.labels == present[:, None, None]
        return supervision.Detections(
            xyxy=supervision.mask_to_xyxy(masks).astype(np.float32),
            mask=masks,
            class_id=present.astype(np.int64),
            data=dict(class_name=np.array(self.names, dtype=str)),
        )


@dataclass(frozen=True, eq=False)
class ClassificationResult:
    """The class of one image.

    Attributes:
        scores: (C,) float32, the probability of each class.
        classes: the names of all C classes.
        size: (H, W) of the image.
        path: the image's file, None if it has none.
    """

    scores: np.ndarray
    classes: tuple[str, ...]
    size: tuple[int, int]
    path: str | None = None

    @property
    def label(self) -> int:
        """The number of the most likely class."""
        return int(self.scores.argmax())

    @property
    def name(self) -> str:
        """The name of the most likely class."""
        return self.classes[self.label]

    @property
    def score(self) -> float:
        """The probability of the most likely class."""
        return float(self.scores.max())

    def top(self, k: int = 5) -> list[tuple[int, float]]:
        """Numbers and probabilities of the k most likely classes, most likely first."""
        best = np.argsort(-self.scores, kind="stable")[:k]
        return [(int(label), float(self.scores[label])) for label in best]

    def to_supervision(self) -> "supervision.Classifications":
        import supervision

        return supervision.Classifications(class_id=np.arange(len(self.scores)), confidence=self.scores)


Result = DetectionResult | SegmentationResult | ClassificationResult
