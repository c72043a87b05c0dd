"""Generates "shapes", a small data set for trying detection and segmentation without a download.

Discs, squares and triangles overlap on a smooth background. Outline and texture define the class: striped discs,
chequered squares, dotted triangles. Colours, contrast, area, orientation and position have the same distribution for
all three, so they do not reveal the class. About one period of a texture fits into a 16 x 16 patch, and textures tilt
by at most 20 degrees, so a small stride-16 model distinguishes the classes after about 200 steps of 8 images.

The same images have COCO instances and ADE-style label maps:

    OUT/meta.json                                        classes, label rule, parameters
    OUT/coco/annotations/instances_{train,val}2017.json
    OUT/coco/{train,val}2017/NAME.jpg
    OUT/ade/images/{training,validation}/NAME.jpg        the same files (hard links)
    OUT/ade/annotations/{training,validation}/NAME.png

Labels follow the ADE20K convention (stored 0 = ignored, stored k = class k); 0 does not occur. An instance is the
visible part of an object as COCO's compressed RLE, which is exact, can represent holes (polygons cannot), and is read
by pycocotools and mmdet (`poly2mask=True`, the default).

Legend: H = W = `size` pixels, N objects per image.
"""

import json
import math
import os
import shutil
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from arm_backbone.checkpoint.writing import write_errors
from arm_images.errors import DataError

VERSION = 1  # increase it if a change alters any image or annotation
CLASSES = ("disc", "square", "triangle")  # COCO category id = position + 1
SEG_CLASSES = ("background", *CLASSES)  # stored label = position + 1
PALETTE = ((90, 90, 90), (230, 60, 60), (60, 190, 75), (70, 110, 240))  # of SEG_CLASSES
MIN_SIZE = 96
MAX_COUNT = 1_000_000
MIN_VISIBLE = 0.3  # visible share of each object's whole area; other layouts are rejected
MAX_TILT = math.radians(20)  # of a texture, in both directions; outlines have any angle
MIN_CONTRAST = 120  # in brightness, 0..255, between the two colours of a texture


@dataclass(frozen=True)
class _Split:
    number: int  # part of the random seed
    coco: str
    ade: str
    first_id: int  # image id of index 0


SPLITS = {
    "train": _Split(0, "train2017", "training", 1),
    "val": _Split(1, "val2017", "validation", MAX_COUNT + 1),
}


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
    rng = np.random.default_rng([seed, SPLITS[split].number, index])
    y, x = np.mgrid[:size, :size].astype(np.float64)  # (H, W) each
    count = int(rng.integers(1, 5))
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
        side = size * rng.uniform(0.18, 0.38)
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
        shift = rng.uniform(0, 32, size=2)
        u, v = _turn(x + shift[0], y + shift[1], rng.uniform(-MAX_TILT, MAX_TILT))
        mix = texture(u, v, rng.uniform(0.92, 1.08))[..., None]  # (H, W, 1) in 0..1
        first, second = _two_colours(rng)
        return first + mix * (second - first)


def _stripes(u: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    frequency = 2 * math.pi / (16 * scale)
    return np.clip(0.5 + np.sin(frequency * u) / frequency, 0, 1)


def _checker(u: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    frequency = math.pi / (9 * scale)
    return np.clip(0.5 + np.sin(frequency * u) * np.sin(frequency * v) / frequency, 0, 1)


def _dots(u: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    spacing = 8.5 * scale
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
    """A smooth blend of three random colours, (H, W, 3).

    Args:
        x, y: (H, W), from 0 to 1.
    """
    first, second, third = rng.uniform(40, 215, size=(3, 3))
    image = first + _slow_waves(rng, x, y)[..., None] * (second - first)
    return image + _slow_waves(rng, x, y)[..., None] * (third - first) / 2


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


def write_shapes(
    out: str | Path,
    train: int = 400,
    val: int = 60,
    size: int = 192,
    seed: int = 0,
    force: bool = False,
    progress: bool = False,
) -> bool:
    """Write the data set to the folder `out`; it is written completely or not at all.

    Images depend on (seed, split, index, size) only, so a larger data set begins with the images of a smaller one. Two
    runs on the same machine write the same bytes.

    Args:
        out: folder to create. If it already contains this data set, nothing is written.
        train, val: number of images per split, 1 to 1,000,000.
        size: side of an image in pixels, at least 96.
        seed: >= 0.
        force: replace a shapes folder that is damaged or has other parameters; a folder with anything else is still
            refused.
        progress: show a progress bar on stderr.

    Returns:
        whether the folder was written.

    Raises:
        DataError: if a parameter is out of range, or `out` contains something else or cannot be written.
    """
    for name, value, low, high in (
        ("train", train, 1, MAX_COUNT),
        ("val", val, 1, MAX_COUNT),
        ("size", size, MIN_SIZE, 4096),
        ("seed", seed, 0, 2**63),
    ):
        if not low <= value <= high:
            raise DataError(f"shapes: {name} is {value}; give a number from {low} to {high}")
    out = Path(out).absolute()
    meta = _meta(train, val, size, seed)
    if _already_there(out, meta, force):
        return False

    # not `replacing`: two processes may write the same data set at once, so each needs its own name
    partial = out.with_name(f".{out.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        with write_errors(out, partial):
            _write_all(partial, meta, progress)
            _put_in_place(partial, out, meta, force)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _meta(train: int, val: int, size: int, seed: int) -> dict:
    return {
        "dataset": "shapes (generated)",
        "parameters": {"version": VERSION, "seed": seed, "size": size, "train": train, "val": val},
        "classes": list(SEG_CLASSES),
        "palette": [list(colour) for colour in PALETTE],
        "label_rule": "stored 0 = ignored (does not occur); stored k >= 1 = k-th of classes",
        "instance_classes": list(CLASSES),
        "instance_rule": "category id k = k-th of instance_classes; compressed RLE, visible part",
    }


def _already_there(out: Path, meta: dict, force: bool) -> bool:
    """Whether `out` already holds the whole data set; raises DataError if it must not be written."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise DataError(f"{out} is a file; give a folder to make")
    if not any(out.iterdir()):
        return False
    try:
        found = json.loads((out / "meta.json").read_text())
        ours = found["dataset"] == meta["dataset"]
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise DataError(f"{out} contains something other than generated shapes; give another folder")
    if force:
        return False
    if found != meta:
        raise DataError(
            f"{out} contains shapes with {found.get('parameters')}, not {meta['parameters']}; "
            "replace it with --force or give another folder"
        )
    for path, expected in _file_counts(out, meta).items():
        count = sum(1 for _ in path.iterdir()) if path.is_dir() else 0
        if count != expected:
            raise DataError(f"{path} contains {count} files instead of {expected}; rewrite the data set with --force")
    return True


def _file_counts(out: Path, meta: dict) -> dict[Path, int]:
    counts = {out / "coco" / "annotations": len(SPLITS)}
    for name, split in SPLITS.items():
        for folder in _folders(out, split):
            counts[folder] = meta["parameters"][name]
    return counts


def _folders(out: Path, split: _Split) -> tuple[Path, Path, Path]:
    """A split's folders of COCO images, ADE images and label maps."""
    return (
        out / "coco" / split.coco,
        out / "ade" / "images" / split.ade,
        out / "ade" / "annotations" / split.ade,
    )


def _put_in_place(partial: Path, out: Path, meta: dict, force: bool) -> None:
    if out.exists() and any(out.iterdir()):  # with `force`, or written by another process meanwhile
        if not force and _already_there(out, meta, force):
            return
        old = partial.with_name(partial.name.replace(".partial-", ".old-"))
        out.rename(old)
        partial.rename(out)
        shutil.rmtree(old)
    else:
        partial.rename(out)


def _write_all(root: Path, meta: dict, progress: bool) -> None:
    parameters = meta["parameters"]
    for folder in _file_counts(root, meta):
        folder.mkdir(parents=True)
    files = {name: _empty_coco(name) for name in SPLITS}
    jobs = [(name, index) for name in SPLITS for index in range(parameters[name])]
    if progress:
        from mmengine.utils import track_iter_progress

        jobs = track_iter_progress(jobs, file=sys.stderr)
    for name, index in jobs:
        scene = draw_scene(parameters["seed"], name, index, parameters["size"])
        stem = f"{name}_{index:06d}"
        _write_images(scene, stem, *_folders(root, SPLITS[name]))
        _add_to_coco(files[name], scene, SPLITS[name].first_id + index, f"{stem}.jpg")
    for name, content in files.items():
        path = root / "coco" / "annotations" / f"instances_{SPLITS[name].coco}.json"
        path.write_text(json.dumps(content))
    (root / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


def _write_images(scene: Scene, stem: str, coco: Path, ade: Path, labels: Path) -> None:
    image = coco / f"{stem}.jpg"
    Image.fromarray(scene.image).save(image, quality=95, subsampling=0)
    try:
        os.link(image, ade / image.name)
    except OSError:  # the file system has no hard links
        shutil.copyfile(image, ade / image.name)
    Image.fromarray(scene.label_map()).save(labels / f"{stem}.png")


def _empty_coco(split: str) -> dict:
    return {
        "info": {"description": f"generated shapes, {split}, version {VERSION}"},
        "licenses": [],
        "categories": [{"id": 1 + i, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASSES)],
        "images": [],
        "annotations": [],
    }


def _add_to_coco(content: dict, scene: Scene, image_id: int, file_name: str) -> None:
    from pycocotools import mask as mask_utils

    height, width = scene.image.shape[:2]
    content["images"].append({"id": image_id, "file_name": file_name, "height": height, "width": width})
    for i, (category_id, mask) in enumerate(zip(scene.category_ids, scene.masks)):
        rle = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
        content["annotations"].append(
            {
                "id": 10 * image_id + i,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": mask_utils.toBbox(rle).tolist(),  # x, y, width, height
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
            }
        )
