"""The preprocessing of pretraining, detection and segmentation turns an image into the same tensor."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from arm_pretrain import ImageCrops
from tests.helpers.paths import ROOT

SIZE = (192, 256)


def preprocessed(config: str, inputs: list[dict]) -> torch.Tensor:
    """The preprocessed input of a configuration's model, (1, 3, H, W)."""
    cfg = Config.fromfile(ROOT / config)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        settings = cfg.model.data_preprocessor
        for key in ("size", "pad_size_divisor"):
            settings.pop(key, None)
        return MODELS.build(settings)(pseudo_collate(inputs), training=False)["inputs"]


def dense_item(config: str, path: str) -> dict:
    cfg = Config.fromfile(ROOT / config)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        steps = [s for s in cfg.test_pipeline if s.type in ("LoadImageFromFile", "PackDetInputs", "PackSegInputs")]
        if steps[-1].type == "PackDetInputs":
            steps[-1].meta_keys = ("img_path", "img_shape")
        info = dict(img_path=path, seg_fields=[], reduce_zero_label=True)
        return Compose(steps)(info)


@pytest.fixture(params=["generated", "photograph"])
def image(request, tmp_path) -> str:
    """An image file of `SIZE`, lossless so that decoders agree."""
    if request.param == "generated":
        source = next((request.getfixturevalue("shapes") / "coco" / "val2017").iterdir())
    else:
        source = sorted((request.getfixturevalue("photographs") / "coco2017_mini" / "val2017").glob("*.jpg"))[0]
    path = tmp_path / "image.png"
    Image.open(source).convert("RGB").resize(SIZE[::-1]).save(path)
    return str(path)


def test_three_tasks_one_tensor(image):
    pretraining = preprocessed("pretrain/configs/arm_b.py", [ImageCrops(list_file(image), size=SIZE, augment=False)[0]])
    detection = preprocessed("det_configs/mask_rcnn_arm_b.py", [dense_item("det_configs/mask_rcnn_arm_b.py", image)])
    segmentation = preprocessed("seg_configs/upernet_arm_b.py", [dense_item("seg_configs/upernet_arm_b.py", image)])
    assert pretraining.shape == (1, 3, *SIZE)
    torch.testing.assert_close(detection, pretraining)
    torch.testing.assert_close(segmentation, pretraining)
    # red first, ImageNet's mean and deviation
    red = torch.from_numpy(np.array(Image.open(image))[..., 0]).float()
    torch.testing.assert_close(pretraining[0, 0], (red - 123.675) / 58.395)


def list_file(image: str) -> str:
    path = image.replace("image.png", "list.txt")
    with open(path, "w") as file:
        file.write("image.png\n")
    return path
