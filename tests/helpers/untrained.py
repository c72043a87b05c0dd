"""Small models with random weights and what a prediction needs of them."""

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from arm_toolkit.engine.config import load_config
from tests.helpers.published import CLASSES, config_of


def write_checkpoint(cfg: Config, path: Path, classes: tuple[str, ...]) -> Path:
    """Write a checkpoint as our trainings do; the modules that the configuration names must be imported."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    if hasattr(model, "head"):  # a classifier's head starts at zero
        torch.nn.init.normal_(model.head.weight, std=0.5)
    if hasattr(model, "decode_head"):  # else the bias decides, and a label map may hold one class only
        torch.nn.init.normal_(model.decode_head.conv_seg.weight, std=0.5)
    info = dict(cfg.test_dataloader.dataset.get("metainfo") or {}, classes=classes)
    meta = dict(cfg=cfg.pretty_text, dataset_meta=info)
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return path


def write_models(shapes: Path, folder: Path) -> dict[str, Path]:
    """Task -> checkpoint in the folder; the configurations are beside them, as TASK.py."""
    found = {}
    for task, classes in CLASSES.items():
        cfg = config_of(task, shapes)
        cfg.model.pop("init_cfg", None)
        cfg.dump(folder / f"{task}.py")
        load_config(str(folder / f"{task}.py"))  # imports what it names
        found[task] = write_checkpoint(cfg, folder / f"{task}.pth", classes)
    return found
