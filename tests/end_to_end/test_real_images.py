"""What only real data contains: crowd regions, an image without objects, greyscale files."""

import json
from collections.abc import Callable

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, DefaultScope
from PIL import Image

from arm_pretrain import ImageCrops
from arm_toolkit.datasets.transforms import checked_loading
from arm_toolkit.engine.config import load_config
from tests.helpers.paths import ROOT
from tests.helpers.small_models import narrow_detector, narrow_segmentor


@pytest.fixture
def coco(photographs):
    cfg = load_config(
        str(ROOT / "det_configs/mask_rcnn_arm_ti_cpu.py"), dict(data_root=str(photographs / "coco2017_mini"))
    )
    with DefaultScope.overwrite_default_scope("mmdet"):
        cfg.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=False)
        yield cfg, DATASETS.build(checked_loading(cfg.train_dataloader, "mmdet").dataset)


def one_loss(cfg: Config, items: list[dict], narrow: Callable = narrow_detector) -> dict[str, float]:
    torch.manual_seed(0)
    model = revert_sync_batchnorm(MODELS.build(narrow(cfg.model))).train()
    data = model.data_preprocessor(pseudo_collate(items), training=True)
    loss, log = model.parse_losses(model(**data, mode="loss"))
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    return {name: float(value) for name, value in log.items()}


def test_crowd_regions_are_ignored_not_learned(coco):
    cfg, dataset = coco
    crowded = [i for i in range(len(dataset)) if any(x["ignore_flag"] for x in dataset.get_data_info(i)["instances"])]
    assert len(crowded) >= 10
    item = dataset[crowded[0]]
    sample = item["data_samples"]
    assert len(sample.ignored_instances) >= 1
    assert len(sample.gt_instances) + len(sample.ignored_instances) == len(
        dataset.get_data_info(crowded[0])["instances"]
    )
    assert one_loss(cfg, [item])["loss"] > 0


def test_an_image_without_objects_trains(coco):
    cfg, dataset = coco
    (empty,) = [i for i in range(len(dataset)) if not dataset.get_data_info(i)["instances"]]
    log = one_loss(cfg, [dataset[empty]])
    assert log["loss_mask"] == 0 and log["loss_bbox"] == 0 and log["loss_rpn_cls"] > 0


def test_greyscale_files_become_three_equal_channels(photographs):
    path = photographs / "coco_sem133" / "images" / "validation" / "000000007888.jpg"
    assert Image.open(path).mode == "L"
    cfg = Config.fromfile(ROOT / "seg_configs/upernet_arm_ti_camvid.py")
    with DefaultScope.overwrite_default_scope("mmseg"):
        dataset = DATASETS.build(
            dict(
                type="BaseSegDataset",
                data_root=str(path.parents[2]),
                data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
                metainfo=json.loads((path.parents[2] / "meta.json").read_text()) | dict(palette=[[0, 0, 0]] * 133),
                reduce_zero_label=True,
                pipeline=[s for s in cfg.test_pipeline if s["type"] != "LoadAnnotations"],
            )
        )
        index = next(i for i in range(len(dataset)) if dataset.get_data_info(i)["img_path"].endswith(path.name))
        image = dataset[index]["inputs"]
    assert image.shape[0] == 3 and torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])
    listed = ImageCrops(str(path.parent), size=64)
    crop = listed[[f.name for f in listed.files].index(path.name)]["inputs"]
    assert crop.shape == (3, 64, 64) and torch.equal(crop[0], crop[2])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [f"{head}_{encoder}" for encoder in ("vim_s", "vim_b", "vmamba_b", "deit_b") for head in ("mask_rcnn", "upernet")]
    + ["mask_rcnn_arm_b_vitdet", "cascade_mask_rcnn_arm_b_vitdet"],
)
def test_comparison_encoders_train_on_photographs(photographs, name):
    """With the configuration's own pipeline; the optimizer's step is tested in tests/configs/test_configs.py."""
    detection = "mask_rcnn" in name
    folder, data = ("det_configs", "coco2017_mini") if detection else ("seg_configs", "ade20k_samples")
    cfg = load_config(str(ROOT / folder / f"{name}.py"), dict(data_root=str(photographs / data)))
    scope = cfg.default_scope
    with DefaultScope.overwrite_default_scope(scope):
        dataset = DATASETS.build(checked_loading(cfg.train_dataloader, scope).dataset)
        items = [dataset[i] for i in range(2)]
        log = one_loss(cfg, items, narrow_detector if detection else lambda model: narrow_segmentor(model, size=512))
    assert log["loss"] > 0
