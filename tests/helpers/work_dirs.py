"""Work directories of invented runs on the generated shapes; what is predicted is the truth, or nearly."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.helpers.runs import CONFIGS

RESULTS = dict(seg=("mIoU", 50.0), det=("coco/bbox_mAP", 0.5), pretrain=("position/cluster_2", 0.6))


def write_log(folder: Path, start: str, lines: list[dict | str]) -> None:
    """The scalars.json of one part of a training."""
    path = folder / start / "vis_data" / "scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))


def make_run(folder: Path, kind: str, shapes: Path, **options) -> Path:
    """A finished training of 20 steps, with configuration and checkpoint."""
    lines = [dict(lr=0.1 / step, loss=2 - step / 20, time=0.5, step=step, iter=step) for step in (5, 10, 15, 20)]
    measure, value = RESULTS[kind]
    write_log(folder, "20260101_000000", [*lines[:2], {measure: 0.8 * value, "step": 10}, *lines[2:]])
    write_log(folder, "20260101_000001", [dict(lines[-1], time=1.0), {measure: value, "step": 20}])
    CONFIGS[kind](shapes, **{"train_cfg.max_iters": 20, **options}).dump(folder / f"{kind}.py")
    torch.save(dict(state_dict={"backbone.a": torch.zeros(3, 500_000)}, meta={}), folder / "iter_20.pth")
    (folder / "last_checkpoint").write_text("elsewhere/iter_20.pth")
    return folder


def predict_labels(folder: Path, shapes: Path) -> None:
    """The true label maps, with the upper half of the first image taken for the first class."""
    shutil.copytree(shapes / "ade/annotations/validation", folder / "predictions")
    os.utime(folder / "predictions")  # shutil copies the time, too
    first = min((folder / "predictions").glob("*.png"))
    labels = np.asarray(Image.open(first)).copy()
    labels[:48] = 1
    Image.fromarray(labels).save(first)


def predict_objects(folder: Path, shapes: Path) -> list[dict]:
    """Every true object with a score of 0.9; returns the entries."""
    truth = json.loads((shapes / "coco/annotations/instances_val2017.json").read_text())
    keys = ("image_id", "category_id", "bbox", "segmentation")
    found = [dict(score=0.9) | {key: entry[key] for key in keys} for entry in truth["annotations"]]
    (folder / "predictions.json").write_text(json.dumps(found))
    return found
