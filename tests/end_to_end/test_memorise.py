"""Overfitting four real images with the training recipes, evaluated by tools/test.py.

Only these tests catch boxes, masks or labels that training shifts, swaps or scales: the loss would fall just as well,
but the metrics would stay low.
"""

import json
import re
import shutil
from pathlib import Path

import pytest

from arm_toolkit.machine import cpu_multiplies_bfloat16
from tests.helpers.paths import ROOT
from tests.helpers.tools import run_tool

pytestmark = pytest.mark.slow(first=True)

OBJECTS = ("000000000034", "000000000036", "000000000394", "000000057345")  # few, large, no crowd
SCENES = ("000000000285", "000000006012", "000000007784", "000000009448")  # few, large regions

DETECTOR = """
_base_ = "{root}/det_configs/mask_rcnn_arm_ti_cpu.py"
data_root = "{data}/"
model = dict(backbone=dict(arch=dict(_delete_=True, embed_dims=128, num_layers=6), init_cfg=None),
             neck=[dict(type="ARMPyramid", in_channels=128, norm_cfg=dict(type="GN")),
                   dict(type="FPN", in_channels=[128] * 4, out_channels=64, num_outs=5)])
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root))
val_dataloader = dict(num_workers=0, persistent_workers=False,
                      dataset=dict(data_root=data_root, ann_file="annotations/instances_train2017.json",
                                   data_prefix=dict(img="train2017/")))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_train2017.json")
test_evaluator = val_evaluator
train_cfg = dict(max_epochs={steps}, val_interval={steps} + 1)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=20),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end={steps}, milestones=[{steps} * 3 // 4, {steps} * 11 // 12]),
]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval={steps}, save_best=None))
"""

# By ViTDet's protocol from scratch, so without layer decay. 192 pixels stand in for 1024, without jitter and flips, or
# there would be more to learn than four images. Anchors are smaller, and boxes go to coarser levels: by default nearly
# all boxes of such small images come from the two finest.
VITDET = """
_base_ = "{root}/det_configs/mask_rcnn_arm_b_vitdet.py"
data_root = "{data}/"
model = dict(
    data_preprocessor=dict(pad_size_divisor=192),
    backbone=dict(arch="tiny", drop_path_rate=0.0, init_cfg=None),
    neck=dict(in_channels=192, out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),
    roi_head=dict(bbox_roi_extractor=dict(out_channels=64, finest_scale=24),
                  mask_roi_extractor=dict(out_channels=64, finest_scale=24),
                  bbox_head=dict(in_channels=64, conv_out_channels=64),
                  mask_head=dict(in_channels=64, conv_out_channels=64, num_convs=2)),
    train_cfg=dict(rpn_proposal=dict(nms_pre=500, max_per_img=100), rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=100)),
)
train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline
for step in train_pipeline + test_pipeline:
    if step["type"] in ("Resize", "RandomResize"):
        step["scale"] = (192, 192)
    if step["type"] == "RandomResize":
        step["ratio_range"] = (1.0, 1.0)
    if step["type"] == "RandomFlip":
        step["prob"] = 0.0
    if step["type"] == "RandomCrop":
        step["crop_size"] = (192, 192)
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False,
                        dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False,
                      dataset=dict(data_root=data_root, ann_file="annotations/instances_train2017.json",
                                   data_prefix=dict(img="train2017/"), pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_train2017.json")
test_evaluator = val_evaluator
train_cfg = dict(max_epochs={steps}, val_interval={steps} + 1)
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.05), paramwise_cfg=dict(layer_decay=1.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=20),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=20, end={steps}, eta_min=1e-6),
]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval={steps}, save_best=None))
del step
"""

SEGMENTOR = """
_base_ = "{root}/seg_configs/upernet_arm_ti_camvid.py"
data_root = "{data}/"
metainfo = dict(classes={classes}, palette={palette})
model = dict(data_preprocessor=dict(size=(192, 192)),
             backbone=dict(arch=dict(_delete_=True, embed_dims=128, num_layers=6), init_cfg=None),
             neck=dict(in_channels=128),
             decode_head=dict(in_channels=[128] * 4, num_classes={count}),
             auxiliary_head=dict(in_channels=128, num_classes={count}))
train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline
for step in train_pipeline + test_pipeline:
    if step["type"] in ("Resize", "RandomResize"):
        step["scale"] = (240, 240)
    if step["type"] == "RandomResize":
        step["ratio_range"] = (0.75, 1.25)
    if step["type"] == "RandomCrop":
        step["crop_size"] = (192, 192)
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False,
                        dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root, metainfo=metainfo,
                      pipeline=test_pipeline, data_prefix=dict(img_path="images/training",
                                                               seg_map_path="annotations/training")))
test_dataloader = val_dataloader
train_cfg = dict(max_iters={steps}, val_interval={steps} + 1)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=20),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=20, end={steps}),
]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval={steps}, save_best=None))
del metainfo, step
"""


def train_and_test(folder: Path, config: str, checkpoint: str) -> str:
    """Train, evaluate the checkpoint, and return the output of tools/test.py."""
    path = folder / "overfit.py"
    path.write_text(config)
    faster = ("--amp",) if cpu_multiplies_bfloat16() else ()
    trained = run_tool("train.py", path, "--work-dir", folder / "run", *faster, timeout=3000)
    assert trained.returncode == 0, trained.stderr[-2000:]
    tested = run_tool(
        "test.py", path, folder / "run" / checkpoint, "--work-dir", folder / "test", "--show-dir", folder / "shown"
    )
    assert tested.returncode == 0, tested.stderr[-2000:]
    return tested.stdout + tested.stderr


def metric(output: str, name: str) -> float:
    return float(re.findall(rf"{name}: *([-\d.]+)", output)[-1])


@pytest.mark.parametrize(
    ("config", "steps", "mask_ap"), [(DETECTOR, 300, 0.7), (VITDET, 300, 0.7)], ids=["FPN", "ViTDet"]
)
def test_mask_rcnn_overfits_four_images(photographs, tmp_path, config, steps, mask_ap):
    source = photographs / "coco2017_mini"
    content = json.loads((source / "annotations" / "instances_train2017.json").read_text())
    content["images"] = [i for i in content["images"] if i["file_name"].removesuffix(".jpg") in OBJECTS]
    kept = {i["id"] for i in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    assert (len(kept), len(content["annotations"])) == (4, 7)
    data = tmp_path / "coco"
    (data / "annotations").mkdir(parents=True)
    (data / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    (data / "train2017").mkdir()
    for image in content["images"]:
        shutil.copy(source / "train2017" / image["file_name"], data / "train2017")
    output = train_and_test(tmp_path, config.format(root=ROOT, data=data, steps=steps), f"epoch_{steps}.pth")
    print(re.findall(r"coco/bbox_mAP.*", output)[-1])
    assert metric(output, "coco/bbox_mAP") >= 0.9
    assert metric(output, "coco/segm_mAP") >= mask_ap


def test_upernet_overfits_four_images(photographs, tmp_path):
    source = photographs / "coco_sem133"
    meta = json.loads((source / "meta.json").read_text())
    data = tmp_path / "ade"
    for kind, suffix in (("images", ".jpg"), ("annotations", ".png")):
        (data / kind / "training").mkdir(parents=True)
        for name in SCENES:
            (file,) = (source / kind).glob(f"*/{name}{suffix}")
            shutil.copy(file, data / kind / "training")
    classes = next(v for k, v in meta.items() if "class" in k and isinstance(v, list) and len(v) == 133)
    palette = [[i, (i * 7) % 256, (i * 31) % 256] for i in range(133)]
    config = SEGMENTOR.format(root=ROOT, data=data, classes=classes, palette=palette, count=133, steps=250)
    output = train_and_test(tmp_path, config, "iter_250.pth")
    print(re.findall(r"aAcc.*", output)[-1])
    assert metric(output, "mIoU") >= 95
