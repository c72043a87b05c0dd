"""Trainings that take seconds: the quickstart's configurations, narrowed, on 96-pixel shapes."""

import argparse
import copy
import json
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from arm_toolkit.engine import launch
from arm_toolkit.engine.arguments import add_train_arguments
from arm_toolkit.engine.runner import ARMRunner
from tests.helpers.paths import ROOT
from tests.helpers.small_models import ARCH, narrow_detector, narrow_segmentor
from tests.helpers.tools import own_globals


def pretrain_config(shapes: Path, validate: bool = False, **options) -> Config:
    """AR pretraining for 4 epochs of 4 iterations with 4 images each."""
    cfg = Config.fromfile(ROOT / "pretrain/configs/quickstart.py")
    cfg.model.update(arch=ARCH, img_size=96, cluster_side=2)
    cfg.train_dataloader.update(batch_size=4)
    cfg.train_dataloader.dataset.update(path=str(shapes / "coco/train2017"), size=96)
    cfg.train_cfg.max_epochs = 4
    cfg.param_scheduler.warmup = 1
    cfg.default_hooks.checkpoint.update(interval=2, max_keep_ckpts=-1)
    cfg.custom_hooks[1].drawn = 1  # ReconstructionHook: drawing four images takes as long as the training
    return _finish(cfg, options)


def mae_config(shapes: Path, **options) -> Config:
    """MAE for 2 epochs of 4 iterations with 4 images each, with a class token."""
    cfg = pretrain_config(shapes, **{"train_cfg.max_epochs": 2, "default_hooks.checkpoint.interval": 1} | options)
    small = dict(arch=ARCH, img_size=96, decoder_dim=32, decoder_depth=1, decoder_heads=4, cls_token="middle")
    cfg.model = dict(type="MAEPretrainer", data_preprocessor=cfg.model.data_preprocessor, **small)
    return cfg


def moco_config(shapes: Path, **options) -> Config:
    """MoCo v3 for 2 epochs of 4 iterations with 4 images each."""
    cfg = pretrain_config(shapes, **{"train_cfg.max_epochs": 2} | options)
    small = dict(arch=ARCH, img_size=64, hidden_dim=64, out_dim=16)
    normalization = {key: cfg.model.data_preprocessor[key] for key in ("mean", "std")}
    cfg.model = dict(type="MoCoPretrainer", data_preprocessor=dict(type="ViewsPreprocessor", **normalization), **small)
    cfg.train_dataloader.dataset.update(type="ImageViews", size=64)
    cfg.train_dataloader.dataset.pop("scale")
    cfg.custom_hooks = [dict(type="FiniteHook"), dict(type="MomentumHook")]
    return cfg


def det_config(shapes: Path, validate: bool = False, **options) -> Config:
    """Mask R-CNN for 2 epochs of 8 iterations with 2 images each; random crops, drop path."""
    cfg = Config.fromfile(ROOT / "det_configs/quickstart_mask_rcnn.py")
    _move(cfg, cfg.data_root, f"{shapes}/coco/")
    narrow_detector(cfg.model, width=32)
    cfg.model.backbone.update(img_size=96, drop_path_rate=0.2)
    cfg.train_dataloader.batch_size = 2
    cfg.train_dataloader.dataset.indices = None
    del cfg.train_dataloader.dataset.pipeline[3]  # RandomResize; some tests train on images of a few pixels
    cfg.train_dataloader.dataset.pipeline[3].update(crop_size=(64, 96), allow_negative_crop=True)
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.pipeline[1].scale = (96, 96)
    cfg.train_cfg.update(max_epochs=2, val_interval=100, val_begin=100)
    if not validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.param_scheduler[0].end = 4
    cfg.param_scheduler[1].end = 2
    cfg.default_hooks.checkpoint.update(interval=1, max_keep_ckpts=-1)
    return _finish(cfg, options)


def seg_config(shapes: Path, validate: bool = False, **options) -> Config:
    """UperNet for 8 iterations with 4 images each; random crops, colours, drop path and dropout."""
    cfg = Config.fromfile(ROOT / "seg_configs/quickstart_upernet.py")
    _move(cfg, cfg.data_root, f"{shapes}/ade/")
    narrow_segmentor(cfg.model, size=96, width=16)
    cfg.model.backbone.update(img_size=96, drop_path_rate=0.2)
    cfg.train_dataloader.batch_size = 4
    cfg.train_dataloader.dataset.indices = None
    del cfg.train_dataloader.dataset.pipeline[3]  # RandomResize; some tests train on images of a few pixels
    cfg.train_dataloader.dataset.pipeline[3].update(crop_size=(64, 64), cat_max_ratio=0.75)
    cfg.train_dataloader.dataset.pipeline.insert(5, dict(type="PhotoMetricDistortion"))
    cfg.train_cfg.update(max_iters=8, val_interval=100, val_begin=100)
    if not validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.param_scheduler[0].end = cfg.param_scheduler[1].begin = 2
    cfg.param_scheduler[1].end = 8
    cfg.default_hooks.checkpoint.update(interval=4, max_keep_ckpts=-1)
    return _finish(cfg, options)


CONFIGS = dict(pretrain=pretrain_config, det=det_config, seg=seg_config)


def _finish(cfg: Config, options: dict) -> Config:
    cfg.default_hooks.logger.interval = 1
    cfg.log_processor.window_size = 1  # log each iteration's own loss
    cfg.merge_from_dict(options)
    return cfg


def _move(node, old: str, new: str):
    """Replace a prefix of strings in nested dicts and lists, in place."""
    for key, value in node.items() if isinstance(node, (dict, Config)) else enumerate(node):
        if isinstance(value, str) and value.startswith(old):
            node[key] = new + value[len(old) :]
        elif isinstance(value, (dict, list)):
            _move(value, old, new)


def train(cfg: Config, work_dir: Path, *arguments: str) -> ARMRunner:
    """Train as `tools/train.py CONFIG --work-dir WORK_DIR ARGUMENTS` would."""
    cfg = copy.deepcopy(cfg)
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    args = parser.parse_args(["--work-dir", str(work_dir), *arguments])
    with own_globals():
        return launch.train(cfg, args, work_dir.name)


class Stopped(Exception):
    """Simulates what kills a run."""


@HOOKS.register_module()
class StopAt(Hook):
    """Stops a run before an iteration, counted from 1."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx: int, data_batch: dict | None = None) -> None:
        if runner.iter + 1 == self.iteration:
            raise Stopped


@HOOKS.register_module()
class DumpGradients(Hook):
    """Writes the initial weights and the gradients of the first step (rank 0)."""

    def __init__(self, path: str) -> None:
        self.path = path

    def before_train(self, runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        weights = {name: value.clone() for name, value in model.state_dict().items()}

        def dump(*_) -> None:
            gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
            if runner.rank == 0:
                torch.save(dict(weights=weights, gradients=gradients), self.path)

        runner.optim_wrapper.optimizer.register_step_pre_hook(dump)


def logged(work_dir: Path) -> dict[int, dict]:
    """Iteration -> its logged values, the last ones if it ran twice."""
    files = sorted(work_dir.glob("*/vis_data/scalars.json"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    lines = [line for line in lines if not any(key.startswith("position/") for key in line)]  # ReconstructionHook's
    return {line["step"] if "iter" not in line else line["iter"]: line for line in lines}
