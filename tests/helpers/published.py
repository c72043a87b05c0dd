"""Small checkpoints of every task as a training writes them, without the training."""

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from arm_backbone.classifier import ARMClassifier
from arm_toolkit.engine.config import load_config
from arm_toolkit.inference.publish import Statements, publish
from arm_toolkit.inference.published import Published
from tests.helpers.paths import ROOT
from tests.helpers.runs import det_config, seg_config
from tests.helpers.small_models import ARCH

PALETTE = [[90, 90, 90], [230, 60, 60], [60, 190, 75], [70, 110, 240]]
CLASSES = dict(
    det=("disc", "square", "triangle"),
    seg=("background", "disc", "square", "triangle"),
    cls=("disc", "square", "triangle"),
)


def config_of(kind: str, shapes: Path) -> Config:
    """The configuration of a small detector ("det"), segmentor ("seg") or classifier ("cls")."""
    if kind != "cls":
        return dict(det=det_config, seg=seg_config)[kind](shapes, validate=True)
    cfg = Config.fromfile(ROOT / "cls_configs/quickstart_arm.py")
    cfg.model.update(arch=ARCH, img_size=64, init_cfg=dict(type="Pretrained", checkpoint="/home/me/a.pth"))
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = f"{shapes}/classes/"
        loader.dataset.transform.input_size = 64
    return cfg


def save_checkpoint(kind: str, shapes: Path, file: Path, **meta) -> Path:
    """A checkpoint with random weights; norms and statistics are random, too."""
    torch.manual_seed(0)
    if kind == "backbone":
        state = {
            f"{key}": value
            for key, value in ARMClassifier(ARCH, 64, num_classes=0, cls_token=None).state_dict().items()
        }
        torch.save(dict(state_dict={k: v for k, v in state.items() if not k.startswith("norm.")}), file)
        return file
    cfg = config_of(kind, shapes)
    cfg.dump(file.with_suffix(".py"))
    load_config(str(file.with_suffix(".py")))  # imports what it names
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build({**cfg.model, "init_cfg": None} if kind == "cls" else cfg.model)
    file.with_suffix(".py").unlink()
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    info = dict(classes=CLASSES[kind], palette=PALETTE if kind == "seg" else None)
    cfg.work_dir = str(file.parent)
    meta = dict(cfg=cfg.pretty_text, dataset_meta=info, epoch=2, iter=8) | meta
    torch.save(dict(state_dict=model.state_dict(), meta=meta), file)
    return file


def publish_small(kind: str, shapes: Path, folder: Path, **statements) -> Published:
    """Publish one of these checkpoints into FOLDER/published."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = save_checkpoint(kind, shapes, folder / "epoch_2.pth")
    return publish(str(checkpoint), folder / "published", None, Statements(**statements))
