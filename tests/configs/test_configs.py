"""Every configuration loads, states its launch command, and fits the code: models, pipelines, optimizer.

Narrowed copies of the detectors and segmentors take a real training step on generated data.
"""

import copy
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseTTAModel, revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, DefaultScope, Registry
from mmengine.structures import InstanceData, PixelData
from PIL import Image
from torch import nn

from arm_backbone.timm_backbone import TIMM
from arm_toolkit.datasets.transforms import checked_loading
from arm_toolkit.engine.config import OTHER_KEYS, RUNNER_KEYS
from arm_toolkit.engine.own_data_config import BASES, OWN_DATA
from arm_toolkit.engine.own_data_config import FOLDERS as OWN_FOLDERS
from tests.helpers.paths import ROOT
from tests.helpers.small_models import narrow_detector, narrow_segmentor

FOLDERS = ("det_configs", "seg_configs", "cls_configs", "pretrain/configs")


def experiments(*folders: str) -> list[str]:
    """Paths in the repository of the configurations that are run; those in _base_ are only inherited from."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(p.relative_to(ROOT).as_posix() for p in paths if "_base_" not in p.parts)


ALL = experiments(*FOLDERS)
# without those of tools/compare_pretraining.py, which writes the lists that they name
# (tests/arm_toolkit/experiments/test_comparison.py)
DENSE = [p for p in experiments("det_configs", "seg_configs") if "photographs" not in p]
# without those of tools/quickstart.sh, which are made for its generated data
DET, SEG = ([p for p in DENSE if p.startswith(folder) and "quickstart" not in p] for folder in FOLDERS[:2])
RECIPES = DET + SEG
CLS = [p for p in experiments("cls_configs") if "quickstart" not in p]
# the last two exist for configurations that inherit from this one
KNOWN_KEYS = RUNNER_KEYS | OTHER_KEYS | {"train_pipeline", "test_pipeline"}
WIDTHS = {"tiny": 192, "small": 384, "base": 768, "large": 1024, "huge": 1536}
CHECKPOINTS = {"ti": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge"}


@pytest.fixture
def load(request):
    """Loads a configuration and makes its scope the default until the test ends.

    mmdet and mmseg have classes of the same name; the scope set last wins.
    """

    def load_in_scope(path: str) -> Config:
        cfg = Config.fromfile(ROOT / path)
        scope = DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmengine"))
        scope.__enter__()
        request.addfinalizer(lambda: scope.__exit__(None, None, None))
        return cfg

    return load_in_scope


def walk(node, path: str = ""):
    """Yield every (dotted path, value) of nested dicts and sequences."""
    yield path, node
    if isinstance(node, dict):
        for key, value in node.items():
            yield from walk(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from walk(value, f"{path}.{i}".lstrip("."))


def pipelines(cfg: Config) -> list:
    """The pipelines for training, testing and, if configured, test-time augmentation."""
    return [p for p in (cfg.train_pipeline, cfg.test_pipeline, cfg.tta_pipeline) if p is not None]


def transforms(pipeline) -> list[str]:
    """Names of all transforms of a pipeline, including those inside RandomChoice and TestTimeAug."""
    return [value["type"] for _, value in walk(pipeline) if isinstance(value, dict)]


def distinct(paths: list[str], load: Callable, key: Callable) -> list[tuple[str, Config]]:
    """One configuration, with its path, for each distinct value of `key`."""
    configs = [(path, load(path)) for path in paths]
    first = {json.dumps(key(cfg), sort_keys=True): (path, cfg) for path, cfg in reversed(configs)}
    return list(first.values())


def find(registry: Registry, name: str) -> type | None:
    """The class of this name in the default scope, where building looks it up."""
    with registry.switch_scope_and_registry(None) as scoped:
        return scoped.get(name)


def without_weights(model: dict) -> dict:
    model = copy.deepcopy(model)
    for _, value in walk(model):
        if isinstance(value, dict) and isinstance(value.get("init_cfg"), dict):
            value["init_cfg"] = None
    if isinstance(model.get("target"), dict):
        model["target"] = "pixels"  # a tokenizer needs a file that tools/fit_tokenizer.py writes
    return model


# ---------------------------------------------------------------------------------- the files


def test_there_are_configurations():
    for size in CHECKPOINTS:
        assert f"det_configs/mask_rcnn_arm_{size}.py" in DET
        assert f"seg_configs/upernet_arm_{size}.py" in SEG


@pytest.mark.parametrize("path", sorted(ROOT.glob("*_configs/_base_/own_data.py")), ids=lambda path: path.parts[-3])
def test_evaluations_are_logged_by_iteration(path):
    """A report and a model card find an evaluation by its step; mmengine's default would log 0 for all of them."""
    cfg = Config.fromfile(path, import_custom_modules=False)
    assert cfg.train_cfg.type == "IterBasedTrainLoop" and cfg.default_hooks.logger.log_metric_by_epoch is False


@pytest.mark.parametrize("path", ALL)
def test_loads_with_known_keys_only(path, load):
    cfg = load(path)
    unknown = set(cfg.keys()) - KNOWN_KEYS
    assert not unknown, f"{path}: nothing reads {unknown}"  # e.g. fp16=, ignored by OptimWrapper


@pytest.mark.parametrize("path", ALL)
def test_header_says_how_to_run_it(path):
    header = (ROOT / path).read_text().split("_base_ =")[0]
    command = rf"tools/dist_train\.sh {re.escape(path)} \d" if path in RECIPES + CLS else "tools/"
    assert re.search(rf"^#   .*{command}", header, re.M), "no launch command"


@pytest.mark.parametrize("path", RECIPES + CLS)
def test_launch_command_makes_the_stated_batch(path, load):
    cfg = load(path)
    command = re.search(rf"{re.escape(path)} (\d+)", (ROOT / path).read_text())
    each = cfg.train_dataloader.batch_size
    total = int(command[1]) * each
    assert total == cfg.auto_scale_lr.base_batch_size
    assert re.search(rf"Batch {total} = {command[1]} \w+ x {each} ", cfg.text)


def test_every_base_is_used():
    files = {path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    inherited = {
        (path.parent / base).resolve() for path in files for base in re.findall(r'"([\w./]+\.py)"', path.read_text())
    }
    inherited |= {ROOT / OWN_FOLDERS[task] / "_base_" / name for task in BASES for name in (*BASES[task], OWN_DATA)}
    assert {path for path in files if path.parent.name == "_base_"} <= inherited


@pytest.mark.parametrize("path", DENSE + CLS)
def test_paths_start_with_data_root(path, load):
    """Otherwise --cfg-options data_root=PATH would not move all data."""
    cfg = load(path)
    for key in ("train_dataloader", "val_dataloader", "test_dataloader"):
        assert cfg[key].dataset.data_root == cfg.data_root
    for key, value in walk(cfg.to_dict()):
        if isinstance(value, str) and value.startswith("data/"):
            assert value.startswith(cfg.data_root), key


@pytest.mark.parametrize("path", RECIPES)
def test_scales_checkpoint_and_name_agree(path, load):
    backbone = load(path).model.backbone
    size = re.search(r"_(ti|s|b|l|h)(_|$)", Path(path).stem)[1]
    if backbone.type == "TimmBackbone":
        assert backbone.name.split("_")[1] == CHECKPOINTS[size] and backbone.init_cfg.checkpoint == TIMM
        return
    assert backbone.arch == CHECKPOINTS[size]
    checkpoint = backbone.init_cfg.checkpoint
    assert re.fullmatch(rf"checkpoints/\w+_{size}_(pretrain|in1k)\.pth", checkpoint)
    # a classifier has a class token, except VMamba's; a backbone without one refuses to load it
    assert ("cls_token" in backbone) == (checkpoint.endswith("_in1k.pth") and backbone.type != "VMamba")


@pytest.mark.parametrize("path", DENSE)
def test_pipelines_are_exact_and_safe(path, load):
    cfg = load(path)
    train = cfg.train_dataloader
    assert train.dataset.pipeline == cfg.train_pipeline  # the data set uses it, not only its name
    assert cfg.test_dataloader.dataset.pipeline == cfg.test_pipeline
    assert cfg.val_dataloader == cfg.test_dataloader and cfg.val_evaluator == cfg.test_evaluator
    assert cfg.train_pipeline[0]["type"] == "SeedSample"
    assert train.sampler.type == "SeededSampler"
    assert train.sampler.infinite == (cfg.train_cfg.type == "IterBasedTrainLoop")
    for pipeline in pipelines(cfg):
        names = transforms(pipeline)
        assert "LoadImageFromFile" in names  # other programs look for this name; the runner builds LoadImage
        if cfg.default_scope == "mmseg":
            assert "LoadAnnotations" in names
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        assert loader.batch_size == 1 and loader.sampler.shuffle is False


@pytest.mark.parametrize("path", DENSE)
def test_class_numbers_agree(path, load):
    cfg = load(path)
    dataset = cfg.train_dataloader.dataset
    classes = dataset.get("metainfo", find(DATASETS, dataset.type).METAINFO)["classes"]
    numbers = {key: value for key, value in walk(cfg.to_dict()) if key.split(".")[-1] == "num_classes"}
    assert len(numbers) >= 2
    assert set(numbers.values()) == {len(classes)}, numbers


@pytest.mark.parametrize("path", RECIPES)
def test_schedule_spans_the_training(path, load):
    cfg = load(path)
    by_epoch = cfg.train_cfg.type == "EpochBasedTrainLoop"
    end = cfg.train_cfg.max_epochs if by_epoch else cfg.train_cfg.max_iters
    warmup, main = cfg.param_scheduler
    assert main.end == end and main.by_epoch == by_epoch
    assert warmup.begin == 0 and not warmup.by_epoch
    if by_epoch:
        assert all(0 < milestone < end for milestone in main.milestones)
    else:
        assert main.begin == warmup.end
    assert cfg.log_processor.by_epoch == by_epoch
    checkpoint = cfg.default_hooks.checkpoint
    assert checkpoint.get("by_epoch", True) == by_epoch
    assert checkpoint.interval == cfg.train_cfg.val_interval
    assert end % checkpoint.interval == 0
    assert checkpoint.max_keep_ckpts == 3


def test_recipes_of_the_paper(load):
    """Compare with the values of the ARM paper, section 4."""
    det, seg = load("det_configs/mask_rcnn_arm_b.py"), load("seg_configs/upernet_arm_b.py")
    assert det.train_cfg.max_epochs == 36 and det.param_scheduler[1].milestones == [27, 33]
    assert det.optim_wrapper.optimizer == dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05)
    assert seg.train_cfg.max_iters == 160000 and seg.param_scheduler[0].end == 1500
    assert seg.optim_wrapper.optimizer == dict(type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01)
    assert seg.model.test_cfg == dict(mode="slide", crop_size=(512, 512), stride=(341, 341))


def test_nocrop_differs_in_the_crop_only(load):
    cropped = load("det_configs/mask_rcnn_arm_b.py").to_dict()
    whole = load("det_configs/mask_rcnn_arm_b_nocrop.py").to_dict()
    differing = {key for key in cropped if cropped[key] != whole[key]}
    assert differing == {"train_pipeline", "train_dataloader"}
    counts = [Counter(transforms(cfg["train_pipeline"])) for cfg in (cropped, whole)]
    assert counts[0] - counts[1] == Counter(["RandomCrop"]) and not counts[1] - counts[0]


# ------------------------------------------------------------------------------------------ models


@pytest.mark.parametrize("path", ALL)
def test_model_builds_at_full_size(path, load):
    with torch.device("meta"):
        MODELS.build(without_weights(load(path).model))


@pytest.mark.parametrize("path", RECIPES)
def test_maps_at_full_size(path, load):
    """Backbone and pyramid at full size on the meta device, which allocates and computes nothing."""
    model = without_weights(load(path).model)
    if model.backbone.type == "VMamba":
        return check_hierarchical_maps(model)
    pyramid = model.neck[0] if isinstance(model.neck, list) else model.neck
    with torch.device("meta"):
        backbone, neck = MODELS.build(model.backbone).eval(), MODELS.build(pyramid).eval()
        maps = backbone(torch.empty(1, 3, 224, 320))
        levels = neck(maps)
    width = backbone.channels[0] if model.backbone.type == "TimmBackbone" else WIDTHS[model.backbone.arch]
    assert [tuple(x.shape) for x in maps] == [(1, width, 14, 20)] * len(backbone.out_indices)
    strides, channels = (4, 8, 16, 32), width
    if pyramid.type == "ARMSimpleFPN":
        strides, channels = (4, 8, 16, 32, 64), pyramid.out_channels
        assert backbone.out_indices == (backbone.num_layers - 1,)
    sizes = [(1, channels, -(-224 // stride), 320 // stride) for stride in strides]
    assert [tuple(x.shape) for x in levels] == sizes


def check_hierarchical_maps(model) -> None:
    """The backbone's maps have the strides and channels that FPN, or the heads without a neck, expect."""
    with torch.device("meta"):
        maps = MODELS.build(model.backbone).eval()(torch.empty(1, 3, 200, 320))
    heads = model.neck or model.decode_head
    sizes = [(1, c, -(-200 // s), 320 // s) for c, s in zip(heads.in_channels, (4, 8, 16, 32), strict=True)]
    assert [tuple(x.shape) for x in maps] == sizes
    if model.neck is None:
        assert model.auxiliary_head.in_channels == heads.in_channels[model.auxiliary_head.in_index]
    else:
        assert model.neck.type == "FPN"


def shrink(cfg: Config) -> dict:
    """The model of a configuration with few and narrow layers, without weights to load."""
    model = without_weights(cfg.model)
    return narrow_detector(model) if cfg.default_scope == "mmdet" else narrow_segmentor(model, size=64)


def detection_batch() -> dict:
    """Two images of different sizes with two boxes and their masks each."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    inputs, samples = [], []
    for height, width in ((96, 128), (80, 112)):
        boxes = torch.tensor([[8.0, 8.0, 72.0, 60.0], [40.0, 20.0, 100.0, 76.0]])
        masks = np.zeros((2, height, width), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
            mask[y1:y2, x1:x2] = 1
        sample = DetDataSample(
            metainfo=dict(
                img_id=len(samples),
                img_shape=(height, width),
                ori_shape=(height, width),
                scale_factor=(1.0, 1.0),
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=boxes, labels=torch.tensor([0, 2]), masks=BitmapMasks(masks, height, width)
        )
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4),
            labels=torch.zeros(0, dtype=torch.long),
            masks=BitmapMasks(np.zeros((0, height, width), np.uint8), height, width),
        )
        inputs.append(torch.randint(0, 256, (3, height, width), dtype=torch.uint8))
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def segmentation_batch(size: tuple[int, int] = (64, 64), count: int = 2) -> dict:
    """Crops with the labels 0, 1, 2 and 255."""
    from mmseg.structures import SegDataSample

    inputs, samples = [], []
    for _ in range(count):
        sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size, img_path="generated"))
        labels = torch.tensor([0, 1, 2, 255])[torch.randint(0, 4, (1, *size))]
        sample.gt_sem_seg = PixelData(data=labels)
        inputs.append(torch.randint(0, 256, (3, *size), dtype=torch.uint8))
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def small_model(cfg: Config) -> nn.Module:
    torch.manual_seed(0)
    model = revert_sync_batchnorm(MODELS.build(shrink(cfg)))
    model.init_weights()
    return model.train()


def losses_of(model: nn.Module, batch: dict) -> tuple[torch.Tensor, dict[str, float]]:
    data = model.data_preprocessor(batch, training=True)
    loss, log = model.parse_losses(model(**data, mode="loss"))
    return loss, {name: value.item() for name, value in log.items()}


def float32_optim_wrapper(cfg: Config) -> dict:
    """The configuration's optimizer as used without a GPU."""
    options = cfg.optim_wrapper.to_dict()
    assert options.pop("type") == "AmpOptimWrapper"
    assert options.pop("dtype") == "bfloat16" and options.pop("loss_scale") == 1.0
    return dict(type="OptimWrapper", **options)


@pytest.mark.parametrize("folder", ["det_configs", "seg_configs"])
def test_small_siblings_train(folder, load):
    """In one step of the configured optimizer losses are finite, and each parameter gets a gradient and follows it."""
    for path, cfg in distinct([p for p in DENSE if p.startswith(folder)], load, shrink):
        model = small_model(cfg)
        wrapper = build_optim_wrapper(model, float32_optim_wrapper(cfg))
        batch = detection_batch() if cfg.default_scope == "mmdet" else segmentation_batch()
        loss, log = losses_of(model, batch)
        loss.backward()
        assert all(math.isfinite(value) for value in log.values()), (path, log)
        parameters = dict(model.named_parameters())
        assert not [name for name, p in parameters.items() if p.grad is None], path
        before = {name: p.detach().clone() for name, p in parameters.items()}
        wrapper.step()
        unmoved = [n for n, p in parameters.items() if p.grad.any() and torch.equal(p, before[n])]
        assert not unmoved, path


@pytest.mark.parametrize("path", DENSE)
def test_optimizer_groups_are_what_the_configuration_says(path, load):
    cfg = load(path)
    model = small_model(cfg)
    groups = build_optim_wrapper(model, float32_optim_wrapper(cfg)).optimizer.param_groups
    of = {id(p): group for group in groups for p in group["params"]}
    assert len(of) == len(list(model.parameters()))  # each once
    lr, decay = cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.optimizer.weight_decay
    layer_decay = cfg.optim_wrapper.paramwise_cfg.layer_decay
    for name, parameter in model.named_parameters():
        group = of[id(parameter)]
        block = re.match(r"backbone\.(?:model\.)?blocks\.(\d+)\.", name)
        stem = re.match(r"backbone\.(model\.)?(patch_embed|pos_embed|cls_)", name)
        depth = int(block[1]) + 1 if block else 0 if stem else 5  # of 4 blocks
        assert group["lr"] == pytest.approx(lr * layer_decay ** (5 - depth)), name
        exempt = re.search(r"(bias|A_log|\bD|pos_embed|cls_token)$|norms?\b|norm\d|\bbn\b|\bgn\b", name)
        if exempt:
            assert group["weight_decay"] == 0, name
        elif name.endswith(("proj.weight", "conv_weight", "w1.weight", "x_proj_weight")):
            assert group["weight_decay"] == decay, name


def test_unknown_paramwise_key_is_an_error(load):
    cfg = load(DET[0])
    cfg.merge_from_dict({"optim_wrapper.paramwise_cfg.layer_decay_rate": 0.7})
    with pytest.raises(ValueError, match="layer_decay_rate"):
        build_optim_wrapper(small_model(cfg), float32_optim_wrapper(cfg))


@pytest.mark.parametrize("path", ["det_configs/mask_rcnn_arm_b.py", "seg_configs/upernet_arm_b.py"])
def test_bfloat16_autocast_keeps_boxes_and_losses_in_float32(path, load):
    cfg = load(path)
    model, seen = small_model(cfg), []
    batch = detection_batch() if cfg.default_scope == "mmdet" else segmentation_batch()
    if cfg.default_scope == "mmdet":  # RoIs of the two extractors, and the RPN's output
        for extractor in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
            extractor.roi_layers[0].register_forward_pre_hook(lambda _, args: seen.extend(args))
        model.rpn_head.register_forward_hook(lambda *args: seen.extend(args[2][0] + args[2][1]))
    with torch.autocast("cpu", torch.bfloat16):
        loss, log = losses_of(model, batch)
    loss.backward()
    assert all(math.isfinite(value) for value in log.values()), log
    assert all(x.dtype == torch.float32 for x in seen)
    assert seen or cfg.default_scope == "mmseg"


@pytest.mark.parametrize("path", ["det_configs/mask_rcnn_arm_b.py", "seg_configs/upernet_arm_b.py"])
def test_small_sibling_predicts_at_the_original_size(path, load):
    cfg = load(path)
    model = small_model(cfg).eval()
    if cfg.default_scope == "mmdet":
        model.roi_head.test_cfg.score_thr = 0.0
        for sample in model.test_step(detection_batch()):
            found = sample.pred_instances
            assert len(found) and tuple(found.masks.shape[1:]) == sample.ori_shape
    else:
        (sample,) = model.test_step(segmentation_batch((72, 100), count=1))  # not multiples of 16
        assert tuple(sample.pred_sem_seg.data.shape) == (1, 72, 100)


class Ramp(nn.Module):
    """Stands in for the backbone: stride-16 maps of the image itself, averaged per patch."""

    def forward(self, images):
        images = nn.functional.pad(images, (0, -images.shape[3] % 16, 0, -images.shape[2] % 16))
        return (nn.functional.avg_pool2d(images, 16),) * 4


@pytest.mark.parametrize("name", ["upernet_arm_b", "upernet_arm_ti_camvid"])
def test_padding_does_not_shift_the_prediction(name, load):
    """The backbone pads to whole patches. A head that resized its map, padding included, to the size of the image would
    squeeze it: if the map is a ramp, the prediction must be the same ramp."""
    cfg = load(f"seg_configs/{name}.py")
    model = small_model(cfg).eval()
    model.backbone, model.neck = Ramp(), nn.Identity()
    model.decode_head.forward = lambda maps: nn.functional.interpolate(maps[0], scale_factor=4, mode="bilinear")
    model.out_channels = 3
    height, width = 72, 57
    batch = segmentation_batch((height, width), count=1)
    ramp = torch.linspace(0, 255, width).expand(3, height, width)
    batch["inputs"] = [ramp.round().byte()]
    (sample,) = model.test_step(batch)
    row = sample.seg_logits.data[0, 20]
    inner = slice(8, 40)  # clear of the borders, where patches mix with padding
    expected = (batch["inputs"][0][0, 20].float() - 123.675) / 58.395
    assert (row[inner] - expected[inner]).abs().max() < 0.1


# --------------------------------------------------------------------------------------- pipelines


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    """Three generated images in COCO's layout and with its categories: wide, high and grey, each with a polygon and a
    crowd region."""
    from mmdet.datasets import CocoDataset

    root = tmp_path_factory.mktemp("coco")
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir()
    categories = [dict(id=i + 1, name=n) for i, n in enumerate(CocoDataset.METAINFO["classes"])]
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
        images, annotations = [], []
        for i, shape in enumerate(((60, 90, 3), (90, 60, 3), (70, 70))):
            name = f"{i}.jpg"
            Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(root / split / name)
            images.append(dict(id=i, file_name=name, height=shape[0], width=shape[1]))
            box = [10, 10, 40, 40]
            common = dict(image_id=i, category_id=5, bbox=box, area=1600)
            outline = [10, 10, 50, 10, 50, 50, 10, 50]
            crowd = dict(counts=[0, shape[0] * shape[1]], size=list(shape[:2]))
            annotations += [
                dict(id=2 * i + 1, iscrowd=0, segmentation=[outline], **common),
                dict(id=2 * i + 2, iscrowd=1, segmentation=crowd, **common),
            ]
        content = dict(images=images, annotations=annotations, categories=categories)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def ade(tmp_path_factory) -> Path:
    """Two generated images in ADE20K's layout, with the stored labels 0 (ignored), 1 and 3."""
    root = tmp_path_factory.mktemp("ade")
    rng = np.random.default_rng(0)
    for split in ("training", "validation"):
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        for name, (height, width) in dict(a=(80, 120), b=(120, 80)).items():
            image = rng.integers(0, 256, (height, width, 3), np.uint8)
            labels = np.array([0, 1, 3], np.uint8)[np.arange(width) * 3 // width]
            Image.fromarray(image).save(root / "images" / split / f"{name}.jpg")
            Image.fromarray(np.tile(labels, (height, 1))).save(root / "annotations" / split / f"{name}.png")
    return root


def dataset(cfg: Config, split: str, root: Path):
    loader = checked_loading(cfg[f"{split}_dataloader"], cfg.default_scope)
    return DATASETS.build(dict(loader.dataset, data_root=str(root)))


def test_detection_pipelines_run(load, coco):
    for path, cfg in distinct(DET, load, pipelines):
        crop = [t for t in cfg.train_pipeline if t["type"] == "RandomCrop"]
        limit = (1024, 1024) if crop else (1333, 1333)
        train = dataset(cfg, "train", coco)
        assert len(train) == 3
        for i in range(3):
            sample = train[i]
            gt = sample["data_samples"].gt_instances
            assert sample["inputs"].dtype == torch.uint8 and sample["inputs"].shape[0] == 3
            assert all(s <= m for s, m in zip(sample["inputs"].shape[1:], limit)), path
            assert tuple(gt.masks.masks.shape[1:]) == tuple(sample["inputs"].shape[1:])
            assert len(gt) <= 1 and set(gt.labels.tolist()) <= {4}  # the crowd region is not an object
        test = dataset(cfg, "test", coco)[0]  # 60 x 90
        edges = sorted(cfg.test_pipeline[1]["scale"])
        factor = min(edges[0] / 60, edges[1] / 90)
        assert test["inputs"].shape[1:] == (round(60 * factor), round(90 * factor)), path
        assert test["data_samples"].ori_shape == (60, 90)


def test_segmentation_pipelines_run(load, ade):
    for path, cfg in distinct(SEG, load, pipelines):
        size = cfg.model.data_preprocessor.size
        assert [t["crop_size"] for t in cfg.train_pipeline if t["type"] == "RandomCrop"] == [size]
        train = dataset(cfg, "train", ade)
        assert len(train) == 2
        for i in range(2):
            sample = train[i]
            labels = sample["data_samples"].gt_sem_seg.data
            assert sample["inputs"].shape[1:] == labels.shape[1:]
            assert all(s <= m for s, m in zip(labels.shape[1:], size)), path
            assert set(labels.unique().tolist()) <= {0, 2, 255}  # stored minus one, 0 ignored
        test = dataset(cfg, "test", ade)[0]
        assert min(test["inputs"].shape[1:]) >= 300  # enlarged
        assert test["data_samples"].gt_sem_seg.shape == (80, 120)  # evaluated at the original size


def test_label_out_of_range_stops(load, ade):
    """Without this check, training with too small a `num_classes` would continue on wrong labels."""
    cfg = load("seg_configs/upernet_arm_ti_camvid.py")
    for step in cfg.test_dataloader.dataset.pipeline:
        if step["type"] == "LoadAnnotations":
            step["num_classes"] = 2
    with pytest.raises(Exception, match=r"a\.png"):
        dataset(cfg, "test", ade)[0]


@pytest.mark.parametrize("paths", [DET, SEG], ids=["det", "seg"])
def test_tta_pipelines_run(paths, load, coco, ade):
    """There is every size with and without a flip, and each view records its size and flip."""
    for path, cfg in distinct(paths, load, lambda cfg: [cfg.tta_pipeline, cfg.tta_model]):
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
        augmented = dataset(cfg, "test", coco if paths is DET else ade)[0]
        metas = [sample.metainfo for sample in augmented["data_samples"]]
        sizes = Counter(tuple(meta["img_shape"][:2]) for meta in metas)
        assert len(sizes) >= 3 and set(sizes.values()) == {2}, path
        assert Counter(meta["flip"] for meta in metas) == {True: len(sizes), False: len(sizes)}
        assert issubclass(find(MODELS, cfg.tta_model.type), BaseTTAModel)


def test_tta_ratios_are_of_the_test_size(load, ade):
    """mmseg 1.x would scale relative to the image's own size."""
    cfg = load("seg_configs/upernet_arm_b.py")
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    samples = dataset(cfg, "test", ade)[0]["data_samples"]
    short = {min(sample.img_shape[:2]) for sample in samples}
    assert short == {256, 384, 512, 640, 768, 896}


@pytest.mark.parametrize("path", DENSE)
def test_every_transform_builds_in_its_scope(path, load):
    cfg = load(path)
    for pipeline in pipelines(cfg):
        for step in pipeline:
            TRANSFORMS.build(copy.deepcopy(step))


def test_a_training_on_a_cpu_keeps_pytorchs_threads(monkeypatch):
    """Data workers are idle most of the time; a core left to them would be, too."""
    from arm_toolkit.engine.launch import _adapt_to_cpu

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cfg = Config.fromfile(ROOT / "seg_configs/upernet_arm_b.py")
    cfg.launcher, before = "none", torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        _adapt_to_cpu(cfg)
        assert cfg.train_dataloader.num_workers > 0 and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("optimizer", "fused"),
    [(dict(type="AdamW"), True), (dict(type="AdamW", foreach=True), None), (dict(type="SGD", lr=0.1), None)],
)
def test_adam_is_fused_on_a_cpu(optimizer, fused):
    from arm_toolkit.engine.launch import _adapt_to_cpu

    cfg = Config(dict(launcher="none", optim_wrapper=dict(type="AmpOptimWrapper", optimizer=optimizer)))
    _adapt_to_cpu(cfg)
    assert cfg.optim_wrapper.optimizer.get("fused") is fused
    wrapper = build_optim_wrapper(nn.Linear(2, 2), cfg.optim_wrapper)
    assert wrapper.optimizer.defaults["fused"] is fused


def test_a_work_dir_is_removed_while_it_is_written(tmp_path, monkeypatch):
    """TensorBoard's thread makes its file when it likes; a folder that is not empty any more cannot be removed."""
    from arm_toolkit.engine import launch

    folder, removed, rmdir = tmp_path / "new", [], os.rmdir
    (folder / "vis_data").mkdir(parents=True)

    def written_meanwhile(path, **options):
        if not removed:
            (folder / "vis_data/events").write_text("")
        removed.append(path)
        rmdir(path, **options)

    monkeypatch.setattr(os, "rmdir", written_meanwhile)
    launch._remove(folder)
    assert not folder.exists() and len(removed) > 2


@pytest.mark.parametrize(("batch_size", "norm"), [(1, "GN"), (2, "BN")])
def test_sync_bn_without_a_gpu(batch_size, norm, monkeypatch):
    """SyncBN needs a GPU; BN needs more than one value per channel, and UperNet's pooled branch has one per image."""
    from arm_toolkit.engine.launch import _adapt_to_cpu

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cfg = Config.fromfile(ROOT / "seg_configs/upernet_arm_b.py")
    cfg.launcher, cfg.train_dataloader.batch_size = "none", batch_size
    _adapt_to_cpu(cfg)
    assert cfg.model.decode_head.norm_cfg.type == cfg.model.neck.norm_cfg.type == norm
    with DefaultScope.overwrite_default_scope("mmseg"):
        head = MODELS.build(cfg.model.decode_head | dict(in_channels=[64] * 4, channels=64)).train()
        maps = [torch.randn(batch_size, 64, 2 * s, 2 * s) for s in (8, 4, 2, 1)]
        assert head(maps).isfinite().all()
