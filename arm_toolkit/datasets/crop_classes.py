"""Class folders for classification, cut from a COCO instance data set."""

import json
import shutil
from pathlib import Path

from PIL import Image

from arm_images.errors import DataError

SPLITS = {"train": "train2017", "val": "val2017"}
MARGIN = 1.25  # side of the square crop, of the longer side of the box


def write_class_folders(coco: Path, out: Path, min_side: int = 16) -> dict[str, int]:
    """Cut every object out of a COCO folder into OUT/{train,val}/CATEGORY/NAME.jpg.

    Crowds, and objects whose box is shorter than `min_side` pixels, are left out.

    Returns:
        number of crops of each split.

    Raises:
        DataError: if OUT exists, or an annotation file or image does not.
    """
    if out.exists():
        raise DataError(f"{out} exists; remove it or give another folder")
    contents = {split: _read(coco / f"annotations/instances_{name}.json") for split, name in SPLITS.items()}
    partial = out.with_name(f"{out.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        counts = {
            split: _cut(content, coco / SPLITS[split], partial / split, min_side) for split, content in contents.items()
        }
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return counts


def _read(file: Path) -> dict:
    if not file.is_file():
        raise DataError(f"{file} does not exist; give a COCO folder (annotations/, train2017/, val2017/)")
    return json.loads(file.read_bytes())


def _cut(content: dict, images: Path, out: Path, min_side: int) -> int:
    names = {category["id"]: category["name"] for category in content["categories"]}
    for name in names.values():
        (out / name).mkdir(parents=True)
    by_image: dict[int, list[dict]] = {}
    for annotation in content["annotations"]:
        if not annotation.get("iscrowd") and min(annotation["bbox"][2:]) >= min_side:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
    files = {image["id"]: images / image["file_name"] for image in content["images"]}
    for image_id, annotations in by_image.items():
        with Image.open(files[image_id]) as opened:
            image = opened.convert("RGB")
        for annotation in annotations:
            left, top, width, height = annotation["bbox"]
            half = max(width, height) * MARGIN / 2
            x, y = left + width / 2, top + height / 2
            crop = image.crop([round(edge) for edge in (x - half, y - half, x + half, y + half)])  # black beyond it
            name = f"{files[image_id].stem}_{annotation['id']}.jpg"
            crop.save(out / names[annotation["category_id"]] / name, quality=95)
    return sum(map(len, by_image.values()))
