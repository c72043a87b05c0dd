"""tools/new_config.py: recognises the trees that people have, writes a configuration that trains, names every fault."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from arm_backbone import ARM
from tests.helpers.tools import invoke
from tests.helpers.trees import (
    class_names,
    coco_content,
    write_class_folders,
    write_masks,
    write_roboflow,
    write_yolo,
)

WRITERS = {
    "COCO": lambda shapes, out: shutil.copytree(shapes / "coco", out),
    "Roboflow": write_roboflow,
    "YOLO polygons": write_yolo,
    "YOLO boxes": lambda shapes, out: write_yolo(shapes, out, boxes=True),
    "8-bit label maps": lambda shapes, out: write_masks(shapes, out, "labels"),
    "palettes": lambda shapes, out: write_masks(shapes, out, "palette"),
    "colours": lambda shapes, out: write_masks(shapes, out, "colours"),
    "two values": lambda shapes, out: write_masks(shapes, out, "binary"),
    "class folders": write_class_folders,
}


def new_config(data: Path, out: Path, *arguments):
    return invoke("new_config.py", data, "--out", out, "--model", "arm_tiny", *arguments)


@pytest.mark.parametrize("form", WRITERS)
def test_a_tree_becomes_a_configuration_that_passes_the_checks(form, shapes, tmp_path):
    data = WRITERS[form](shapes, tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    run = new_config(data, tmp_path / "my.py")
    assert run.returncode == 0, run.stderr + run.stdout
    assert "configuration, arguments and files are in order" in run.stdout
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before  # never changed
    text = (tmp_path / "my.py").read_text()
    code = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(code) < 45 and max(map(len, code)) < 200
    cfg = Config.fromfile(tmp_path / "my.py")
    assert Path(cfg.data_root).is_absolute()
    assert cfg.optim_wrapper.type == "AutoAmpOptimWrapper" and cfg.default_hooks.checkpoint.save_best
    assert [hook.type for hook in cfg.custom_hooks] == ["WeightEMAHook", "EarlyStopHook"]
    if form in ("COCO", "Roboflow", "YOLO polygons", "YOLO boxes"):
        names = [category["name"] for category in coco_content(shapes, "train")["categories"]]
        assert cfg.train_dataloader.dataset.metainfo.classes == names
        assert (cfg.model.roi_head.mask_head is None) == (form == "YOLO boxes")
    elif form == "two values":
        assert cfg.train_dataloader.dataset.metainfo.classes == ["background", "foreground"]
    elif form == "class folders":
        assert cfg.model.num_classes == 3
    else:
        assert cfg.train_dataloader.dataset.metainfo.classes == class_names(shapes)


def test_weights_choose_the_model_and_must_fit(shapes, tmp_path):
    data, weights = write_class_folders(shapes, tmp_path / "data"), tmp_path / "weights.pth"
    torch.save(dict(state_dict=ARM(arch="small").state_dict()), weights)
    run = invoke("new_config.py", data, "--out", tmp_path / "my.py", "--weights", "weights.pth", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert 'arch="small"' in (tmp_path / "my.py").read_text() and str(weights) in (tmp_path / "my.py").read_text()
    run = new_config(data, tmp_path / "other.py", "--weights", weights)
    assert run.returncode == 2 and f"{weights}" in run.stderr and len(run.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "other.py").exists()


def test_nothing_is_replaced_or_written_into_the_data_without_being_told(shapes, tmp_path):
    data = write_yolo(shapes, tmp_path / "data")
    assert new_config(data, data / "my.py").returncode == 2
    assert new_config(data, tmp_path / "my.py").returncode == 0
    (tmp_path / "my_data/note.txt").write_text("mine")
    run = new_config(data, tmp_path / "my.py")
    assert run.returncode == 2 and "--force" in run.stderr and (tmp_path / "my_data/note.txt").exists()
    assert new_config(data, tmp_path / "my.py", "--force").returncode == 0
    assert not (tmp_path / "my_data/note.txt").exists()


# ------------------------------------------------------------------------------------------- malformed data sets


def edit_json(file: Path, change) -> Path:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return file


def cut_off(data: Path) -> str:
    file = data / "annotations/instances_train2017.json"
    file.write_text(file.read_text()[:-200])
    return f"{file.resolve()}: is not JSON|cut off or damaged: fetch it again"


def other_folder(data: Path) -> str:
    def rename(content):
        for image in content["images"]:
            image["file_name"] = f"other_{image['file_name']}"

    file = edit_json(data / "annotations/instances_val2017.json", rename)
    return f"{file.resolve()}: none of its 6 images is there, first other_|put them into one of these, or correct"


def corners(data: Path) -> str:
    def change(content):
        for annotation in content["annotations"]:
            x, y, w, h = annotation["bbox"]
            annotation["bbox"] = [x, y, x + w, y + h]

    file = edit_json(data / "annotations/instances_train2017.json", change)
    return f"{file.resolve()}: |boxes reach more than 1 pixel out of their image (clip them); annotation ids"


def lost_image(data: Path) -> str:
    file = min((data / "train2017").iterdir())
    file.unlink()
    return f"1 of 16 images do not exist, first {file.resolve()}"


def pixels(data: Path) -> str:
    file = min((data / "labels/train").iterdir())
    file.write_text(file.read_text() + "0 48 48 20 20\n")
    return f"{file.resolve()}, line |lies outside the image; YOLO's coordinates are fractions|not pixels"


def from_one(data: Path) -> str:
    file = min((data / "labels/val").iterdir())
    file.write_text("3 0.5 0.5 0.2 0.2\n")
    return f"{file.resolve()}, line 1: class 3, but data.yaml names 3 classes, 0 to 2|add the class to names"


def moved_images(data: Path) -> str:
    text = (data / "data.yaml").read_text()
    (data / "data.yaml").write_text(text.replace("images/val", "../elsewhere/val"))
    return f"{data.resolve()}/data.yaml: val: ../elsewhere/val does not exist|write a path relative to"


def no_yaml(data: Path) -> str:
    (data / "data.yaml").unlink()
    return f"{data.resolve()} has YOLO's label files|no data.yaml that names their classes; write one"


def no_legend(data: Path) -> str:
    (data / "class_dict.csv").unlink()
    return f"the masks of {data.resolve()} hold 5 colours|give --classes FILE with one line NAME R G B|0 128 192"


def unnamed_colour(data: Path) -> str:
    file = min((data / "masks/train").iterdir())
    stored = np.array(Image.open(file))
    stored[10:12, 10:12] = (1, 2, 3)
    Image.fromarray(stored).save(file)
    return f"label map {file.resolve()} holds the colour 1 2 3|does not name|add it there, or correct the mask"


def photographs_as_masks(data: Path) -> str:
    for file in (data / "masks/train").iterdir():
        with Image.open(file) as stored:
            stored.save(file.with_suffix(".jpg"), quality=95)
        file.unlink()
    first = min((data / "masks/train").iterdir())
    return f"label map {first.resolve()}: a JPEG, which changes labels|save it as PNG"


def smaller_mask(data: Path) -> str:
    file = min((data / "masks/val").iterdir())
    Image.open(file).resize((48, 48), Image.Resampling.NEAREST).save(file)
    return f"label map {file.resolve()} has 48x48 pixels, its image|96x96; save it in the size of the image"


def lost_mask(data: Path) -> str:
    file = min((data / "masks/train").iterdir())
    file.unlink()
    return f"1 of 16 images in {data.resolve()}/images/train have no label map, first {file.stem}.jpg|add label maps"


def too_few_names(data: Path) -> str:
    (data / "classes.txt").write_text("background\ndisc\n")
    return f"holds the label 3, but {data.resolve()}/classes.txt names 2 classes; name the others too"


def empty_class(data: Path) -> str:
    (data / "train").mkdir()
    for folder in [path for path in data.iterdir() if path.name != "train"]:
        folder.rename(data / "train" / folder.name)
    (data / "train" / "zebra").mkdir()
    return f"{data.resolve()}/train/zebra is a class without an image|add images or remove the folder"


def damaged_image(data: Path) -> str:
    file = min((data / "disc").iterdir())
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return f"{file.resolve()}|image file is truncated|repair"


def images_alone(data: Path) -> str:
    shutil.rmtree(data / "masks")
    return f"{data.resolve()} is not recognised; accepted are annotations/*.json|data.yaml|CLASS/"


MALFORMED = {
    "COCO": (cut_off, other_folder, corners, lost_image),
    "YOLO polygons": (pixels, from_one, moved_images, no_yaml),
    "colours": (no_legend, unnamed_colour, photographs_as_masks),
    "8-bit label maps": (smaller_mask, lost_mask, too_few_names, images_alone),
    "class folders": (empty_class, damaged_image),
}
FAULTS = [(form, fault) for form, faults in MALFORMED.items() for fault in faults]


@pytest.mark.parametrize("form, fault", FAULTS, ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_a_malformed_data_set_is_one_line_that_names_file_and_remedy(form, fault, shapes, tmp_path):
    data = WRITERS[form](shapes, tmp_path / "data")
    expected = fault(data).split("|")
    run = new_config(data, tmp_path / "my.py")
    lines = run.stderr.strip().splitlines()
    assert run.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: "), run.stderr
    for part in expected:
        assert part in lines[0], f"{part!r} is not in {lines[0]!r}"
    assert [path.name for path in tmp_path.iterdir()] == ["data"]  # nothing is written
