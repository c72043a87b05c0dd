"""Creates a classification data set by cropping the objects of a COCO instance data set."""

from pathlib import Path

from arm_backbone.checkpoint.writing import replacing
from arm_images.errors import DataError
from arm_images.read import read_rgb, reason

from .annotations import read_coco

SPLITS = {"train": "train2017", "val": "val2017"}
MARGIN = 1.25  # side of the square crop, relative to the longer side of the box


def write_class_folders(coco: Path, out: Path, min_side: int = 16) -> dict[str, int]:
    """Crop every object of a COCO folder to OUT/{train,val}/CATEGORY/NAME.jpg; writes all crops or none.

    Args:
        coco: has annotations/, train2017/ and val2017/.
        out: folder to create.
        min_side: skip objects whose box has a side below this many pixels; crowds are skipped too.

    Returns:
        number of crops in each split.

    Raises:
        DataError: if `out` exists, or an annotation file or image does not.
    """
    if out.exists():
        raise DataError(f"{out} exists; remove it or give another folder")
    contents = {split: _read(coco / f"annotations/instances_{name}.json") for split, name in SPLITS.items()}
    with replacing(out) as partial:
        return {
            split: _crop(content, coco / SPLITS[split], partial / split, min_side)
            for split, content in contents.items()
        }


def _read(file: Path) -> dict:
    if not file.is_file():
        raise DataError(f"{file} does not exist; give a COCO folder (annotations/, train2017/, val2017/)")
    return read_coco(file, masks=False)[0]


def _crop(content: dict, images: Path, out: Path, min_side: int) -> int:
    """Write the crops of one split; returns their number."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    out.mkdir(parents=True)
    by_image: dict[int, list[dict]] = {}
    for annotation in content["annotations"]:
        if not annotation.get("iscrowd") and min(annotation["bbox"][2:]) >= min_side:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
    files = {image["id"]: images / image["file_name"] for image in content["images"]}
    for image_id, annotations in by_image.items():
        if not files[image_id].is_file():
            raise DataError(f"{files[image_id]} does not exist, but the annotations name it; complete the images")
        try:
            image = read_rgb(files[image_id])
        except Exception as error:  # noqa: BLE001 a decoder can raise anything
            raise DataError(f"{files[image_id]} cannot be read ({reason(error)}); repair it") from None
        for annotation in annotations:
            left, top, width, height = annotation["bbox"]
            half = max(width, height) * MARGIN / 2
            x, y = left + width / 2, top + height / 2
            crop = image.crop([round(edge) for edge in (x - half, y - half, x + half, y + half)])  # black outside
            name = f"{files[image_id].stem}_{annotation['id']}.jpg"
            folder = out / names[annotation["category_id"]]
            folder.mkdir(exist_ok=True)  # a class without objects has no folder: an empty one is an error later
            crop.save(folder / name, quality=95)
    return sum(map(len, by_image.values()))
