"""Saves the predictions of a detector's test as one whole file; needs mmdet."""

from mmdet.evaluation import DumpDetResults
from mmengine.registry import METRICS

from .saved_results import SaveResults


@METRICS.register_module()
class SaveInstances(SaveResults, DumpDetResults):
    """mmdet's DumpDetResults (masks as run lengths) that keeps an earlier file until the new one is complete."""
