"""What a run's saved predictions are worth: the same questions for every task, answered by one class per task."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.patches import Patch

from .figures import Panel


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix: counts (R, K) of what is in truth (rows) and predicted (columns).

    Attributes:
        unit: what is counted, e.g. "pixels".
        how: a sentence that says how.
    """

    counts: np.ndarray
    rows: list[str]
    columns: list[str]
    unit: str
    how: str

    def most_frequent(self, count: int) -> list[tuple[str, str, int, float]]:
        """The most frequent mistakes: truth, predicted, number, and its share of the row in percent."""
        wrong = self.counts.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(wrong, axis=None, kind="stable")[::-1][:count]
        found = [divmod(int(position), wrong.shape[1]) for position in order if wrong.flat[position] > 0]
        shares = [100 * wrong[row, column] / self.counts[row].sum() for row, column in found]
        return [(self.rows[r], self.columns[c], int(wrong[r, c]), share) for (r, c), share in zip(found, shares)]


@dataclass(frozen=True)
class Scores(ABC):
    """Results of one run on its test set.

    Attributes:
        classes: names, C of them.
        overall: measure -> points (0..100), over all images.
        by_class: measure -> points of each class (C,), nan where undefined.
        counted: what `counts` counts, e.g. "objects".
        counts: number of these in the truth, of each class (C,).
        confusion: the confusion matrix.
        names: file names of the N images.
        image_measure: what `of_images` holds, as a sentence part.
        of_images: points of each image (N,), nan for an image without anything to judge.
        amounts: how much is judged in each image (N,), e.g. objects: of images with equal points, more of it is shown
            first.
        notes: sentences on what is unusual.
    """

    classes: list[str]
    overall: dict[str, float]
    by_class: dict[str, np.ndarray]
    counted: str
    counts: np.ndarray
    confusion: Confusion
    names: list[str]
    image_measure: str
    of_images: np.ndarray
    amounts: np.ndarray
    notes: list[str] = field(default_factory=list)

    @abstractmethod
    def truth_panels(self, index: int) -> list[Panel]:
        """The image and its truth."""

    @abstractmethod
    def panels(self, index: int, title: str, alone: bool) -> list[Panel]:
        """What is predicted for an image.

        Args:
            title: of the first panel.
            alone: no other run is shown beside this one.
        """

    @abstractmethod
    def ratio(self, index: int) -> float:
        """Height of an image by its width."""

    @abstractmethod
    def caption(self, index: int) -> str:
        """What is right and wrong in an image, as a short sentence part; "" if the score says it all."""

    def legend(self, index: int) -> Sequence[Patch]:
        """Entries below the panels of an image."""
        return ()


def same_test(first: Scores, second: Scores) -> bool:
    """Whether two runs were tested on the same images and classes, so that their figures can be compared."""
    return type(first) is type(second) and (first.classes, first.names) == (second.classes, second.names)


def best_and_worst(scores: Sequence[Scores], count: int) -> tuple[list[int], list[int]]:
    """Indices of the images with the highest and the lowest mean of the runs' scores, best and worst first.

    No image is in both lists. Of images with equal scores, those with more to judge come first, then the first ones.
    """
    means = np.mean([of_run.of_images for of_run in scores], axis=0)
    amounts = np.mean([of_run.amounts for of_run in scores], axis=0)
    judged = [index for index in range(len(means)) if np.isfinite(means[index])]
    best = sorted(judged, key=lambda index: (-means[index], -amounts[index]))[: min(count, -(-len(judged) // 2))]
    rest = sorted(set(judged) - set(best), key=lambda index: (means[index], -amounts[index], index))
    return best, rest[:count]


def shrink(pixels: np.ndarray, side: int = 720) -> np.ndarray:
    """An image, label map or mask (H, W, ...) without most of its pixels, if its longer side is above `side`."""
    step = -(-max(pixels.shape[:2]) // side)
    return pixels[::step, ::step]
