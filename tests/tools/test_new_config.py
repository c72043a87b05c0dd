"""tools/new_config.py: recognises the trees that people have, writes a configuration that trains, names every fault."""

import shutil
from pathlib import Path

import pytest
from mmengine.config import Config

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
