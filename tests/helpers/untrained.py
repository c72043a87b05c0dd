"""Checkpoints as our trainings write them, of small models with random weights: their predictions mean nothing."""

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from tests.helpers.paths import ROOT
from tests.helpers.runs import det_config, seg_config
from tests.helpers.small_models import ARCH

SHAPES = ("disc", "square", "triangle")
CLASSES = dict(det=SHAPES, seg=("background", *SHAPES), cls=SHAPES)  # by task


def cls_config(shapes: Path) -> Config:
    """A classifier for 32-pixel images; its class folders need not exist."""
    cfg = Config.fromfile(ROOT / "cls_configs/quickstart_arm.py")
    cfg.model.update(arch=ARCH, img_size=32, init_cfg=None)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.transform.input_size = 32
    return cfg


CONFIGS = dict(
    det=lambda shapes: det_config(shapes, validate=True),
    seg=lambda shapes: seg_config(shapes, validate=True),
    cls=cls_config,
)


def write_checkpoint(cfg: Config, path: Path, classes: tuple[str, ...]) -> Path:
    """Write a checkpoint of a configuration, whose custom imports must be imported, with random weights."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    if hasattr(model, "head"):  # a classifier's head starts at zero
        torch.nn.init.normal_(model.head.weight, std=0.5)
    meta = dict(cfg=cfg.pretty_text, dataset_meta=dict(classes=classes))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return path


def write_models(shapes: Path, folder: Path) -> dict[str, Path]:
    """Task -> checkpoint in the folder; the configurations are beside them, as TASK.py."""
    found = {}
    for task, config in CONFIGS.items():
        cfg = config(shapes)
        cfg.dump(folder / f"{task}.py")
        found[task] = write_checkpoint(cfg, folder / f"{task}.pth", CLASSES[task])
    return found
