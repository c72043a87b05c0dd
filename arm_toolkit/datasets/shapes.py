"""Writes "shapes", a small generated data set for trying detection and segmentation without a download.

The same images have COCO instances and ADE-style label maps:

    OUT/meta.json                                        classes, label rule, parameters
    OUT/coco/annotations/instances_{train,val}2017.json
    OUT/coco/{train,val}2017/NAME.jpg
    OUT/ade/images/{training,validation}/NAME.jpg        the same files (hard links)
    OUT/ade/annotations/{training,validation}/NAME.png

Labels follow the ADE20K convention (stored 0 = ignored, stored k = class k); 0 does not occur. An instance is the
visible part of an object as COCO's compressed RLE, which is exact, can represent holes (polygons cannot), and is read
by pycocotools and mmdet (`poly2mask=True`, the default).
"""

import json
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

from .scenes import CLASSES, Scene, draw_scene

VERSION = 2  # increase it if a change alters any image or annotation
SEG_CLASSES = ("background", *CLASSES)  # stored label = position + 1
PALETTE = ((90, 90, 90), (230, 60, 60), (60, 190, 75), (70, 110, 240))  # of SEG_CLASSES
MIN_SIZE = 96
MAX_COUNT = 1_000_000


@dataclass(frozen=True)
class _Split:
    coco: str
    ade: str
    first_id: int  # image id of index 0


SPLITS = {
    "train": _Split("train2017", "training", 1),
    "val": _Split("val2017", "validation", MAX_COUNT + 1),
}


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
