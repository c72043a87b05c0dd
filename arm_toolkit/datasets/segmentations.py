"""Segmentations of COCO annotations, as polygons or run lengths: what is wrong with one, and its area.

pycocotools checks nothing: a coordinate that is not finite or far away crashes it or takes all memory, and run lengths
that do not fill the image are read and written outside their buffers.
"""

import math

NUMBERS = {int, float}  # the types of JSON's numbers; bool is none of them
FAR = 2  # coordinates may lie this many image sides outside the image
POINTS = 6  # numbers in the smallest polygon: three points


def is_far(values: list, side: int) -> bool:
    """Whether numbers are not finite, or more than `FAR` sides outside an image whose longer side is `side`."""
    if min(values) < -FAR * side or max(values) > (1 + FAR) * side:
        return True
    return not math.isfinite(sum(values))  # min and max can miss a NaN


def segmentation_fault(segmentation: object, width: int, height: int) -> str:
    """What is wrong with the segmentation of an object in an image of this size; "" if nothing is.

    Polygons of fewer than three points are no fault if another polygon of the object has more (`drop_degenerate`).
    """
    if isinstance(segmentation, list):
        return _polygons_fault(segmentation, max(width, height))
    if isinstance(segmentation, dict):
        return _run_lengths_fault(segmentation, width, height)
    return "segmentations are neither polygons nor run lengths"


def _polygons_fault(polygons: list, side: int) -> str:
    if any(type(polygon) in NUMBERS for polygon in polygons):
        return "segmentations are a flat list of numbers (write a list of polygons: [[x, y, ...], ...])"
    for polygon in polygons:
        if not isinstance(polygon, list) or not set(map(type, polygon)) <= NUMBERS:
            return "segmentations hold a polygon that is no list of numbers"
        if len(polygon) % 2:
            return "segmentations hold a polygon with an odd number of coordinates"
        if polygon and is_far(polygon, side):
            return f"segmentations have a coordinate that is not finite or more than {FAR} image sides outside"
    if not any(len(polygon) >= POINTS for polygon in polygons):
        return "segmentations have no polygon of three points or more"
    return ""


def drop_degenerate(segmentation: list | dict) -> list | dict:
    """Without polygons of fewer than three points; pycocotools would read one of two points as a box."""
    if isinstance(segmentation, dict) or all(len(polygon) >= POINTS for polygon in segmentation):
        return segmentation
    return [polygon for polygon in segmentation if len(polygon) >= POINTS]


def _run_lengths_fault(rle: dict, width: int, height: int) -> str:
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, list) or set(map(type, size)) != {int} or size != [height, width]:
        return "run-length masks have another size than their image"
    if isinstance(counts, str):
        lengths = _decoded(counts)
    elif isinstance(counts, list) and set(map(type, counts)) <= {int}:
        lengths = counts
    else:
        lengths = None
    if lengths is None or not len(lengths) or min(lengths) < 0 or sum(lengths) != width * height:
        return "run-length masks do not fill their image"
    return ""


def _decoded(counts: str) -> list[int] | None:
    """The run lengths of COCO's compressed text, or None if it is damaged.

    A length is written in groups of 5 bits, the lowest first, as characters from "0" on; 32 marks that another group
    follows. From the fourth length on, the text holds the difference to the length before the last one.
    """
    lengths, value, shift = [], 0, 0
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 30:
            return None
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
            value = shift = 0
    return None if shift else lengths


def mask_area(segmentation: list | dict, width: int, height: int) -> float:
    """Pixels of a valid segmentation."""
    from pycocotools import mask

    if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
        segmentation = mask.frPyObjects(segmentation, height, width)
    return float(mask.area(mask.merge(segmentation) if isinstance(segmentation, list) else segmentation))


def is_box(box: object) -> bool:
    """Whether this is [x, y, width >= 0, height >= 0] in numbers; `is_far` says whether they are finite."""
    return isinstance(box, list) and len(box) == 4 and set(map(type, box)) <= NUMBERS and min(box[2:]) >= 0
