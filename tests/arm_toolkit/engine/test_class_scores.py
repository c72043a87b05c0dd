"""`tools/test.py --out FILE.json` of a classifier, for a data set that reads a list of images."""

import json

import torch
from mmengine.config import Config
from PIL import Image

from arm_toolkit.datasets.class_folder import ClassFolder
from arm_toolkit.engine.outputs import save_results
from arm_toolkit.engine.saved_results import SaveClassScores


def test_files_are_those_of_the_list(tmp_path):
    for name in ("ant/a.png", "ant/b.png", "bee/c.png"):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "train" / name)
    (tmp_path / "listed.txt").write_text("ant/b.png\nbee/c.png\n")
    given = dict(data_root=str(tmp_path), split="train", transform=dict(input_size=32), ann_file="listed.txt")
    dataset = ClassFolder(**given)
    cfg = Config(
        dict(
            default_scope="mmengine",
            test_evaluator=[],
            test_dataloader=dict(dataset=dict(type="ClassFolder", **given)),
        )
    )
    save_results(cfg, str(tmp_path / "scores.json"))
    metric = SaveClassScores(**{key: value for key, value in cfg.test_evaluator[0].items() if key != "type"})
    metric.dataset_meta = dataset.metainfo
    metric.process(dict(data_samples=[0, 1]), list(torch.eye(2)))
    metric.compute_metrics(metric.results)
    written = json.loads((tmp_path / "scores.json").read_text())
    assert [image["file"] for image in written["images"]] == ["ant/b.png", "bee/c.png"]
