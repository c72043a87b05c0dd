"""Detections as entries of COCO's results format, which pycocotools' `loadRes` reads.

Legend: n objects, H x W pixels.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from pycocotools import mask as rle


def result_entries(
    image: dict,
    category_ids: Sequence[int],
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    masks: Iterable[np.ndarray | dict] | None,
) -> list[dict]:
    """The objects of one image: category_id, bbox (left, top, width, height in pixels), score, and with masks
    segmentation (compressed run lengths).

    Args:
        image: what every entry says about its image, as `image_id`.
        category_ids: by label.
        boxes: (n, 4), x1, y1, x2, y2.
        scores: (n,), 0 to 1.
        labels: (n,).
        masks: (H, W) bool, or run lengths; None for a detector without masks.
    """
    sides = np.asarray(boxes, float).reshape(-1, 4).copy()
    sides[:, 2:] -= sides[:, :2]
    segmentations = [{}] * len(labels) if masks is None else [dict(segmentation=run_lengths(mask)) for mask in masks]
    rows = zip(labels.tolist(), sides.tolist(), scores.tolist(), segmentations, strict=True)
    return [
        dict(image, category_id=category_ids[label], bbox=box, score=score, **segmentation)
        for label, box, score, segmentation in rows
    ]


def run_lengths(mask: np.ndarray | dict) -> dict:
    """A mask (H, W), or its compressed run lengths, ready for JSON."""
    found = mask if isinstance(mask, dict) else rle.encode(np.asfortranarray(mask, np.uint8))
    counts = found["counts"]
    return dict(size=list(map(int, found["size"])), counts=counts.decode() if isinstance(counts, bytes) else counts)
