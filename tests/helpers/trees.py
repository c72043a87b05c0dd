"""Writes annotated images in the trees that other programs use, from the generated shapes in COCO's and ADE's form."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask

SPLITS = dict(train="train2017", val="val2017")
COLOURS = [(0, 0, 0), (220, 20, 60), (0, 128, 192), (128, 128, 0), (70, 70, 70), (250, 170, 30)]


def coco_content(shapes: Path, split: str) -> dict:
    return json.loads((shapes / f"coco/annotations/instances_{SPLITS[split]}.json").read_text())


def write_yolo(shapes: Path, out: Path, boxes: bool = False, splits: tuple = ("train", "val")) -> Path:
    """data.yaml, images/SPLIT and labels/SPLIT with polygons, or with boxes."""
    names = []
    for split in splits:
        content = coco_content(shapes, split)
        ids = {category["id"]: number for number, category in enumerate(content["categories"])}
        names = [category["name"] for category in content["categories"]]
        for folder in ("images", "labels"):
            (out / folder / split).mkdir(parents=True)
        for image in content["images"]:
            width, height = image["width"], image["height"]
            shutil.copy(shapes / "coco" / SPLITS[split] / image["file_name"], out / "images" / split)
            lines = []
            for annotation in (a for a in content["annotations"] if a["image_id"] == image["id"]):
                x, y, w, h = annotation["bbox"]
                values = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
                if not boxes:
                    values = [v / (height if i % 2 else width) for i, v in enumerate(outline(annotation))]
                lines.append(" ".join([str(ids[annotation["category_id"]]), *(f"{value:.7f}" for value in values)]))
            label = out / "labels" / split / Path(image["file_name"]).with_suffix(".txt").name
            label.write_text("\n".join(lines) + "\n")
    given = "".join(f"{split}: images/{split}\n" for split in splits)
    (out / "data.yaml").write_text(f"path: .\n{given}names: {json.dumps(names)}\n")
    return out


def outline(annotation: dict) -> list[float]:
    """The largest outline of an object with a run-length mask, as x, y, x, y, ..."""
    contours, _ = cv2.findContours(mask.decode(annotation["segmentation"]), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return max(contours, key=len).reshape(-1).astype(float).tolist()


def write_roboflow(shapes: Path, out: Path) -> Path:
    """train/ and valid/, each with images and _annotations.coco.json, whose first category names the whole."""
    for split, name in (("train", "train"), ("val", "valid")):
        content = coco_content(shapes, split)
        shutil.copytree(shapes / "coco" / SPLITS[split], out / name)
        for category in content["categories"]:
            category["supercategory"] = "shapes"
        content["categories"].insert(0, dict(id=0, name="shapes", supercategory="none"))
        for number, annotation in enumerate(content["annotations"]):
            annotation["id"] = number
        (out / name / "_annotations.coco.json").write_text(json.dumps(content))
    return out


def write_masks(shapes: Path, out: Path, form: str, splits: tuple = ("train", "val")) -> Path:
    """Images beside label maps.

    Args:
        form: "labels" (8 bits, 255 ignored), "palette", "colours" (with class_dict.csv), or "binary" (0 and 255).
    """
    names = class_names(shapes)
    for split, folder in (("train", "training"), ("val", "validation")):
        if split not in splits:
            continue
        images, masks = out / "images" / split, out / "masks" / split
        shutil.copytree(shapes / "ade/images" / folder, images)
        masks.mkdir(parents=True)
        for file in sorted((shapes / "ade/annotations" / folder).glob("*.png")):
            stored = stored_labels(file)
            labels = np.where(stored == 0, 255, stored - 1).astype(np.uint8)
            if form == "colours":
                written = Image.fromarray(np.array(COLOURS, np.uint8)[stored])
            elif form == "binary":
                written = Image.fromarray(np.where(labels == 1, 255, 0).astype(np.uint8))
            else:
                written = Image.fromarray(labels)
            if form == "palette":
                written.putpalette([v for c in (COLOURS[1:] + [(0, 0, 0)] * 256)[:256] for v in c])
            written.save(masks / file.name)
    if form == "colours":
        rows = [f"{name},{','.join(map(str, colour))}" for name, colour in zip(["void", *names], COLOURS)]
        (out / "class_dict.csv").write_text("name,r,g,b\n" + "\n".join(rows) + "\n")
    elif form != "binary":
        (out / "classes.txt").write_text("\n".join(names) + "\n")
    return out


def stored_labels(file: Path) -> np.ndarray:
    """A generated label map in ADE20K's form, with a first row that is ignored (0)."""
    stored = np.array(Image.open(file))
    stored[0] = 0
    return stored


def class_names(shapes: Path) -> list[str]:
    """Names of the classes of the label maps."""
    return ["background"] + [category["name"] for category in coco_content(shapes, "train")["categories"]]


def write_class_folders(shapes: Path, out: Path) -> Path:
    """CLASS/NAME.jpg, without splits: each object's box."""
    content = coco_content(shapes, "train")
    names = {category["id"]: category["name"] for category in content["categories"]}
    files = {image["id"]: image["file_name"] for image in content["images"]}
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        folder = out / names[annotation["category_id"]]
        folder.mkdir(parents=True, exist_ok=True)
        with Image.open(shapes / "coco/train2017" / files[annotation["image_id"]]) as image:
            image.convert("RGB").crop((x, y, x + w, y + h)).save(folder / f"{annotation['id']}.png")
    return out
