"""Every pretraining configuration takes a training step at a reduced width; one of each kind trains and resumes."""

import math

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS

from arm_pretrain.tokenizers import fit_centroids
from arm_toolkit.engine.config import load_config
from tests.helpers.paths import ROOT
from tests.helpers.runs import ARCH, logged, train

FOLDER = ROOT / "pretrain/configs"
CONFIGS = sorted(p.relative_to(FOLDER).as_posix() for p in FOLDER.rglob("*.py") if "_base_" not in p.parts)


def reduced(name: str, shapes, tmp_path) -> Config:
    """A configuration at reduced width, for two epochs of one iteration."""
    cfg = load_config(str(FOLDER / name))
    cfg.model.arch = ARCH
    if cfg.model.type == "MoCoPretrainer":
        cfg.model.hidden_dim = 64
    else:
        cfg.model.update(decoder_dim=64, decoder_depth=min(cfg.model.decoder_depth, 4))
    images = cfg.model.get("images_per_sequence", 1)
    if images > 1:  # of 96 pixels; otherwise sequences have 2,560 tokens
        cfg.model.update(img_size=96, cluster_side=2)
        cfg.train_dataloader.dataset.size = 96
    if isinstance(cfg.model.get("target"), dict):
        file = tmp_path / "kmeans.pth"
        torch.save(dict(centroids=fit_centroids([torch.randn(50, 768)], 8)), file)
        cfg.model.target.checkpoint = str(file)
    cfg.train_dataloader.update(
        batch_size=max(2, images), num_workers=0, persistent_workers=False, pin_memory=False, num_batch_per_epoch=1
    )
    cfg.train_dataloader.dataset.path = str(shapes / "coco/train2017")
    cfg.train_cfg.max_epochs = 2
    cfg.param_scheduler.warmup = 1
    cfg.default_hooks.logger.interval = cfg.log_processor.window_size = 1
    cfg.default_hooks.checkpoint.update(interval=1, max_keep_ckpts=-1)
    for hook in cfg.custom_hooks:
        if hook.type == "ReconstructionHook":
            hook.drawn = 1  # drawing takes longer than the training
    return cfg


@pytest.mark.parametrize("name", CONFIGS)
def test_takes_a_training_step(name, shapes, tmp_path):
    """Data set, model and optimizer as configured: a finite loss, a gradient for every parameter, weights that move."""
    cfg = reduced(name, shapes, tmp_path)
    torch.manual_seed(0)
    dataset, model = DATASETS.build(cfg.train_dataloader.dataset), MODELS.build(cfg.model).train()
    options = cfg.optim_wrapper.to_dict()
    options.pop("dtype")
    wrapper = build_optim_wrapper(model, {**options, "type": "OptimWrapper"})
    batch = pseudo_collate([dataset[i] for i in range(cfg.train_dataloader.batch_size)])
    loss, log = model.parse_losses(model(**model.data_preprocessor(batch, True), mode="loss"))
    assert math.isfinite(loss.item()), log
    loss.backward()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert not [name for name, p in parameters.items() if p.grad is None]
    before = {name: p.detach().clone() for name, p in parameters.items()}
    wrapper.step()
    assert not [name for name, p in parameters.items() if p.grad.any() and torch.equal(p, before[name])]


# pixels; tokens; several images with separators; masked patches. tests/pretrain covers every other switch.
@pytest.mark.parametrize(
    "name", ["arm_b.py", "ablations/target_tokens.py", "star/star_b_200e.py", "mae/mae_arm_b_300e.py"]
)
def test_trains_two_iterations_and_resumes(name, shapes, tmp_path):
    cfg = reduced(name, shapes, tmp_path)
    train(cfg, tmp_path / "whole")
    train(cfg, tmp_path / "rest", "--resume", str(tmp_path / "whole/epoch_1.pth"))
    whole, rest = logged(tmp_path / "whole"), logged(tmp_path / "rest")
    assert sorted(whole) == [1, 2] and sorted(rest) == [2]
    assert rest[2]["loss"] == pytest.approx(whole[2]["loss"], rel=1e-6)
    first, second = (torch.load(tmp_path / d / "epoch_2.pth", weights_only=True) for d in ("whole", "rest"))
    for key, value in first["state_dict"].items():
        torch.testing.assert_close(second["state_dict"][key], value, atol=1e-6, rtol=0)


def test_every_row_of_the_papers_has_a_file():
    stems = {name.removesuffix(".py") for name in CONFIGS}
    ablations = [f"cluster_{side}" for side in (96, 64, 48, 32, 16)] + ["pixel_units", "target_tokens", "target_pixels"]
    ablations += [f"order_{order}" for order in ("row_backward", "column_forward", "column_backward", "random")]
    ablations += [f"decoder_depth_{depth}" for depth in (1, 2, 8)] + [f"decoder_width_{width}" for width in (384, 1024)]
    studies = ["type_none", "type_token", "type_cluster", "position_cs", "position_scs", "position_csc"]
    studies += [f"value_{value}" for value in ("zeros", "ones", "embedding", "identity")]
    studies += [f"images_{n}" for n in (1, 2, 4, 16)] + [f"star_b_{epochs}e" for epochs in (200, 300, 1600)]
    wanted = {f"ablations/{name}" for name in ablations} | {f"star/{name}" for name in studies}
    assert wanted <= stems, wanted - stems
