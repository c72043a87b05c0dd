"""Draws results on their images with supervision's annotators.

Legend: H x W pixels.
"""

from pathlib import Path

import cv2
import matplotlib
import numpy as np
import supervision as sv

from .classes import Colour
from .results import ClassificationResult, DetectionResult, Result, SegmentationResult

FONT = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")  # has Latin, Greek, Cyrillic and Arabic letters
OPACITY = 0.45  # of masks and label maps
SMALLEST = 0.002  # share of the pixels from which a region of a label map gets its name
MANY = 12  # texts on an image, from which they are written smaller
TOP = 3  # classes that are written on an image of a classifier


def draw(image: np.ndarray, result: Result, palette: tuple[Colour, ...]) -> np.ndarray:
    """A copy of an image (H, W, 3), RGB, with the result drawn on it."""
    colours = sv.ColorPalette([sv.Color(*colour) for colour in palette])
    scene = np.ascontiguousarray(image[..., ::-1])
    if isinstance(result, DetectionResult):
        scene = _draw_objects(scene, result, colours)
    elif isinstance(result, SegmentationResult):
        scene = _draw_label_map(scene, result, palette, colours)
    else:
        scene = _draw_classes(scene, result, colours)
    return scene[..., ::-1]


def _draw_objects(scene: np.ndarray, result: DetectionResult, colours: sv.ColorPalette) -> np.ndarray:
    found = result.to_supervision()[::-1]  # the highest score lies on top
    thickness = max(1, round(min(result.size) / 350))
    if found.mask is not None:
        scene = sv.MaskAnnotator(colours, opacity=OPACITY).annotate(scene, found)
        scene = sv.PolygonAnnotator(colours, thickness=thickness).annotate(scene, found)
    scene = sv.BoxAnnotator(colours, thickness=thickness).annotate(scene, found)
    texts = [f"{name} {score:.2f}" for name, score in zip(found["class_name"], found.confidence)]
    return _write(scene, found, texts, colours, sv.Position.TOP_LEFT)


def _draw_label_map(
    scene: np.ndarray, result: SegmentationResult, palette: tuple[Colour, ...], colours: sv.ColorPalette
) -> np.ndarray:
    labels = result.labels
    painted = np.asarray(palette, np.uint8)[labels][..., ::-1]
    scene = cv2.addWeighted(painted, OPACITY, scene, 1 - OPACITY, 0)
    points, named = [], []
    for label in np.unique(labels):
        region = _largest_region(labels == label)
        if region.mean() >= SMALLEST:
            named.append(int(label))
            points.append(_innermost(region))
    if not named:
        return scene
    places = np.tile(np.asarray(points, np.float32), 2)  # boxes without extent
    found = sv.Detections(xyxy=places, class_id=np.asarray(named))
    return _write(scene, found, [result.classes[label] for label in named], colours, sv.Position.CENTER)


def _largest_region(mask: np.ndarray) -> np.ndarray:
    _, regions, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return regions == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()


def _innermost(mask: np.ndarray) -> tuple[int, int]:
    """The point (x, y) of a mask that is farthest from its edge, so that a name lies inside."""
    inside = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(inside.argmax(), inside.shape)
    return int(x), int(y)


def _draw_classes(scene: np.ndarray, result: ClassificationResult, colours: sv.ColorPalette) -> np.ndarray:
    corner = sv.Detections(xyxy=np.zeros((1, 4), np.float32), class_id=np.asarray([result.label]))
    text = "\n".join(f"{result.classes[label]} {score:.2f}" for label, score in result.top(TOP))
    return _write(scene, corner, [text], colours, sv.Position.BOTTOM_RIGHT)


def _write(
    scene: np.ndarray, found: sv.Detections, texts: list[str], colours: sv.ColorPalette, position: sv.Position
) -> np.ndarray:
    """Write a text at each detection, black or white on the colour of its class, whichever is easier to read."""
    if not texts:
        return scene
    size = int(np.clip(min(scene.shape[:2]) / 32 / max(1, len(texts) / MANY) ** 0.5, 8, 40))
    dark = [0.299 * c.r + 0.587 * c.g + 0.114 * c.b < 150 for c in colours.colors]
    inks = sv.ColorPalette([sv.Color.WHITE if is_dark else sv.Color.BLACK for is_dark in dark])
    annotator = sv.RichLabelAnnotator(
        colours,
        text_color=inks,
        font_path=str(FONT),
        font_size=size,
        text_padding=max(2, size // 4),
        text_position=position,
        smart_position=True,
    )
    return annotator.annotate(scene, found, labels=texts)
