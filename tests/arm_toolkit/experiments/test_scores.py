"""Scores that the report computes itself, against mmseg and by hand."""

import numpy as np
import pytest
import torch
from mmseg.evaluation import IoUMetric

from arm_toolkit.experiments.detection_scores import f1, match
from arm_toolkit.experiments.scores import Confusion, best_and_worst
from arm_toolkit.experiments.segmentation_scores import by_mmseg, confusion_counts


def test_confusion_counts_give_mmsegs_areas():
    generator = np.random.default_rng(0)
    truth, found = (generator.integers(0, 5, (40, 50)).astype(np.uint8) for _ in range(2))
    truth[:5] = 255
    counts = confusion_counts(truth, found, 6)
    areas = IoUMetric.intersect_and_union(torch.from_numpy(found), torch.from_numpy(truth), 6, 255)
    theirs = IoUMetric.total_area_to_metrics(*areas)
    for name, values in by_mmseg(counts).items():
        np.testing.assert_allclose(values, 100 * np.asarray(theirs[name]), rtol=1e-6)
    assert counts.sum() == 35 * 50 and np.isnan(by_mmseg(counts)["IoU"][5])


def test_objects_are_matched_one_to_one_in_the_order_of_scores():
    truth = [
        dict(category_id=7, bbox=[0, 0, 10, 10], iscrowd=0),
        dict(category_id=7, bbox=[20, 0, 10, 10], iscrowd=0),
        dict(category_id=8, bbox=[40, 0, 10, 10], iscrowd=0),
        dict(category_id=8, bbox=[60, 0, 40, 40], iscrowd=1),
        dict(category_id=9, bbox=[0, 0, 10, 10], iscrowd=0),  # not a class of the data set
    ]
    found = [
        dict(category_id=7, bbox=[0, 0, 10, 10], score=0.8),  # the next one has taken the object: found where none is
        dict(category_id=7, bbox=[0, 0, 10, 9], score=0.9),
        dict(category_id=8, bbox=[21, 0, 10, 10], score=0.7),  # wrong class
        dict(category_id=7, bbox=[40, 6, 10, 10], score=0.6),  # IoU below 0.5: the object is missed
        dict(category_id=8, bbox=[65, 5, 5, 5], score=0.6),  # in the crowd
        dict(category_id=8, bbox=[40, 0, 10, 10], score=0.1),  # below the threshold
    ]
    counts = match(truth, found, {7: 0, 8: 1}, 0.5)
    assert counts.tolist() == [[1, 1, 0], [0, 0, 1], [2, 0, 0]]
    assert f1(counts) == pytest.approx(100 * 2 * 1 / (3 + 4))
    assert np.isnan(f1(np.zeros((3, 3), int)))
    assert match([], [], {7: 0}, 0.5).tolist() == [[0, 0], [0, 0]]


def test_the_most_frequent_mistakes():
    matrix = Confusion(np.array([[5, 3, 0], [1, 0, 0], [0, 4, 4]]), ["a", "b", "c"], ["a", "b", "c"], "pixels", "")
    assert matrix.most_frequent(2) == [("c", "b", 4, 50.0), ("a", "b", 3, 37.5)]
    assert len(matrix.most_frequent(9)) == 3


class Of:
    def __init__(self, *values, amounts=None):
        self.of_images = np.array(values)
        self.amounts = np.array(amounts or [1] * len(values))


def test_no_image_is_among_the_best_and_the_worst():
    assert best_and_worst([Of(5.0, np.nan, 9.0, 1.0, 5.0)], 2) == ([2, 0], [3, 4])
    assert best_and_worst([Of(5.0, 4.0), Of(5.0, 8.0)], 3) == ([1], [0])
    assert best_and_worst([Of(np.nan)], 3) == ([], [])


def test_of_equal_images_those_with_more_to_judge_are_shown():
    scores = Of(0.0, 0.0, 0.0, 100.0, 100.0, 100.0, amounts=[1, 9, 2, 1, 2, 9])
    assert best_and_worst([scores], 2) == ([5, 4], [1, 2])
