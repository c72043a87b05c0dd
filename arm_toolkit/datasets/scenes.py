"""Draws the scenes of the generated data set "shapes" and their ground truth.

Large discs, squares and triangles overlap before a sky and a ground. Outline and texture define the class: striped
discs, chequered squares, dotted triangles. Colours, contrast, area, orientation and position have the same distribution
for all three, so they do not reveal the class.

Images without labels teach something about the classes: a whole object has the area of 20 to 48 patches of 16 x 16
pixels, and its texture repeats every 16 pixels in both directions, so a model that predicts a part of an image from the
parts before it has to see which texture an object has, and continue it.

Legend: H = W = `size` pixels, N objects per image.
"""

import math
from dataclasses import dataclass

import numpy as np

CLASSES = ("disc", "square", "triangle")
SPLIT_SEEDS = {"train": 0, "val": 1}  # part of the random seed
MIN_VISIBLE = 0.6  # visible share of each object's whole area; other layouts are rejected
PERIOD = 16  # of every texture, in pixels
MIN_CONTRAST = 80  # in brightness, 0..255, between the two colours of a texture


@dataclass
class Scene:
    """One image and its ground truth.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        category_ids: N integers, 1 + position in `CLASSES`, from the rearmost object to the frontmost.
        masks: (N, H, W) bool, the visible part of each object; they do not overlap.
        whole_areas: (N,) float, area in pixels of each object, hidden parts included.
    """

    image: np.ndarray
    category_ids: list[int]
    masks: np.ndarray
    whole_areas: np.ndarray

    def label_map(self) -> np.ndarray:
        """Stored labels, (H, W) uint8: 1 = background, 1 + category id elsewhere."""
        labels = np.ones(self.image.shape[:2], dtype=np.uint8)
        for category_id, mask in zip(self.category_ids, self.masks):
            labels[mask] = 1 + category_id
        return labels


def draw_scene(seed: int, split: str, index: int, size: int = 192) -> Scene:
    """Draw one image of the data set; the result depends on the arguments only.

    Args:
        seed: of the whole data set, >= 0.
        split: "train" or "val".
        index: of the image within its split, >= 0.
        size: side of the image in pixels. Objects scale with it, textures do not.
    """
    rng = np.random.default_rng([seed, SPLIT_SEEDS[split], index])
    y, x = np.mgrid[:size, :size].astype(np.float64)  # (H, W) each
    count = int(rng.integers(1, 4))
    while True:
        objects = [_Placed.random(rng, size) for _ in range(count)]
        distances = [placed.distance(x, y) for placed in objects]
        masks = _visible([distance < 0 for distance in distances])
        whole_areas = np.array([placed.side**2 for placed in objects])
        if (masks.sum(axis=(1, 2)) >= MIN_VISIBLE * whole_areas).all():
            break

    image = _background(rng, x / size, y / size)  # (H, W, 3)
    for placed, distance in zip(objects, distances):
        cover = np.clip(0.5 - distance, 0, 1)[..., None]  # edges are soft over one pixel
        image += cover * (placed.paint(rng, x, y) - image)
    image += rng.normal(0, 4, image.shape)
    return Scene(
        image=np.clip(np.rint(image), 0, 255).astype(np.uint8),
        category_ids=[1 + CLASSES.index(placed.kind) for placed in objects],
        masks=masks,
        whole_areas=whole_areas,
    )


@dataclass(frozen=True)
class _Placed:
    """Class and geometry of an object. Lengths in pixels, angles in radians."""

    kind: str
    center: tuple[float, float]  # x, y
    side: float  # of the square of the same area
    angle: float

    @classmethod
    def random(cls, rng: np.random.Generator, size: int) -> "_Placed":
        kind = CLASSES[rng.integers(len(CLASSES))]
        side = size * rng.uniform(0.38, 0.58)
        center = rng.uniform(0.4 * side, size - 0.4 * side, size=2)  # the image border may cut the object
        return cls(kind, tuple(center), side, rng.uniform(0, 2 * math.pi))

    def distance(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Signed distance to the outline, negative inside. Outside a corner: the largest distance to a side's line."""
        u, v = _turn(x - self.center[0], y - self.center[1], self.angle)
        if self.kind == "disc":
            return np.hypot(u, v) - self.side / math.sqrt(math.pi)
        if self.kind == "square":
            return np.maximum(np.abs(u), np.abs(v)) - self.side / 2
        inradius = self.side / math.sqrt(3 * math.sqrt(3))  # of an equilateral triangle
        return np.maximum(v, np.abs(u) * (math.sqrt(3) / 2) - v / 2) - inradius

    def paint(self, rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The object's texture, drawn over the whole image, (H, W, 3)."""
        texture = {"disc": _stripes, "square": _checker, "triangle": _dots}[self.kind]
        shift = rng.uniform(0, PERIOD, size=2)
        mix = texture(x + shift[0], y + shift[1])[..., None]  # (H, W, 1) in 0..1
        first, second = _two_colours(rng)
        return first + mix * (second - first)


def _stripes(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    frequency = 2 * math.pi / PERIOD
    return np.clip(0.5 + np.sin(frequency * u) / frequency, 0, 1)


def _checker(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    frequency = 2 * math.pi / PERIOD
    return np.clip(0.5 + np.sin(frequency * u) * np.sin(frequency * v) / frequency, 0, 1)


def _dots(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    spacing = PERIOD / 2
    u, v = u - spacing * np.rint(u / spacing), v - spacing * np.rint(v / spacing)
    return np.clip(0.5 + 0.27 * spacing - np.hypot(u, v), 0, 1)


def _turn(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = math.cos(angle), math.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def _two_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two RGB colours (0..255) whose brightness differs by more than `MIN_CONTRAST`."""
    while True:
        first, second = rng.uniform(10, 245, size=(2, 3))
        if abs((first - second) @ (0.30, 0.59, 0.11)) > MIN_CONTRAST:
            return first, second


def _background(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A sky above a ground, each a smooth blend of two random colours, (H, W, 3).

    Args:
        x, y: (H, W), from 0 to 1.
    """
    sky, ground = (_blend(rng, x, y) for _ in range(2))
    horizon = rng.uniform(0.3, 0.7) + rng.uniform(-0.2, 0.2) * (x - 0.5)  # height at each x
    below = np.clip(0.5 + (y - horizon) * len(y), 0, 1)[..., None]  # soft over one pixel
    return sky + below * (ground - sky)


def _blend(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    first, second = rng.uniform(40, 215, size=(2, 3))
    return first + _slow_waves(rng, x, y)[..., None] * (second - first)


def _slow_waves(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean of three cosines of at most 1.5 periods across the image, (H, W) in 0..1."""
    waves = np.zeros_like(x)
    for fx, fy, phase in rng.uniform((-1.5, -1.5, 0), (1.5, 1.5, 1), size=(3, 3)):
        waves += np.cos(2 * math.pi * (fx * x + fy * y + phase))
    return 0.5 + waves / 6


def _visible(wholes: list[np.ndarray]) -> np.ndarray:
    """The part of each mask that no later mask covers, (N, H, W) bool."""
    masks = np.stack(wholes)
    hidden = np.zeros_like(masks[0])
    for mask in masks[::-1]:
        mask &= ~hidden
        hidden |= mask
    return masks
