"""What the values of a label map mean, for training, evaluation and the check of data."""

import numpy as np

IGNORED = 255


def class_numbers(stored: np.ndarray, zero_ignored: bool) -> np.ndarray:
    """Class numbers of stored labels, uint8.

    Args:
        zero_ignored: a stored 0 is ignored and k is class k - 1 (mmseg's `reduce_zero_label`); a stored 255 stays.
    """
    return np.where(stored == IGNORED, stored, stored - np.uint8(1)) if zero_ignored else stored


def outside(labels: np.ndarray, num_classes: int, ignored: int = IGNORED) -> np.ndarray:
    """The labels that are neither a class 0 to num_classes - 1 nor ignored."""
    return labels[(labels >= num_classes) & (labels != ignored)]
