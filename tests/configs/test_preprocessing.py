"""One photograph through the three tasks' own preprocessing: the same tensor."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from arm_pretrain import ImageCrops
from helpers.paths import ROOT

SIZE = (192, 256)


def normalised(config: str, inputs: list[dict]) -> torch.Tensor:
    """What the model of a configuration would see, (1, 3, H, W)."""
    cfg = Config.fromfile(ROOT / config)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        settings = cfg.model.data_preprocessor
        for key in ("size", "pad_size_divisor"):
            settings.pop(key, None)
        return MODELS.build(settings)(pseudo_collate(inputs), training=False)["inputs"]


def dense_item(config: str, path: str) -> dict:
    cfg = Config.fromfile(ROOT / config)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        steps = [s for s in cfg.test_pipeline if s.type in ("LoadImage", "PackDetInputs", "PackSegInputs")]
        if steps[-1].type == "PackDetInputs":
            steps[-1].meta_keys = ("img_path", "img_shape")
        info = dict(img_path=path, seg_fields=[], reduce_zero_label=True)
        return Compose(steps)(info)


@pytest.fixture(params=["generated", "photograph"])
def picture(request, tmp_path) -> str:
    """A lossless file of `SIZE`, so that decoders cannot differ."""
    if request.param == "generated":
        source = next((request.getfixturevalue("shapes") / "coco" / "val2017").iterdir())
    else:
        source = sorted((request.getfixturevalue("photographs") / "coco2017_mini" / "val2017").glob("*.jpg"))[0]
    path = tmp_path / "picture.png"
    Image.open(source).convert("RGB").resize(SIZE[::-1]).save(path)
    return str(path)


def test_three_tasks_one_tensor(picture):
    pretraining = normalised(
        "pretrain/configs/arm_b.py", [ImageCrops(picture_list(picture), size=SIZE, augment=False)[0]]
    )
    detection = normalised("det_configs/mask_rcnn_arm_b.py", [dense_item("det_configs/mask_rcnn_arm_b.py", picture)])
    segmentation = normalised("seg_configs/upernet_arm_b.py", [dense_item("seg_configs/upernet_arm_b.py", picture)])
    assert pretraining.shape == (1, 3, *SIZE)
    torch.testing.assert_close(detection, pretraining)
    torch.testing.assert_close(segmentation, pretraining)
    # red first, ImageNet's mean and deviation
    red = torch.from_numpy(np.array(Image.open(picture))[..., 0]).float()
    torch.testing.assert_close(pretraining[0, 0], (red - 123.675) / 58.395)


def picture_list(picture: str) -> str:
    path = picture.replace("picture.png", "list.txt")
    with open(path, "w") as file:
        file.write("picture.png\n")
    return path
