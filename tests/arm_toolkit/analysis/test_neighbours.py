"""k-NN of classifiers: features that only random parameters read are refused."""

import pytest
import torch
from mmengine.registry import MODELS

from arm_backbone.arm import ARM
from arm_backbone.checkpoint.errors import CheckpointError
from arm_backbone.vim import Vim
from arm_toolkit.analysis.neighbours import measure_images
from arm_toolkit.engine.config import load_config
from tests.helpers.paths import ROOT

SMALL = dict(embed_dims=32, num_layers=4)


@pytest.mark.parametrize(
    ("encoder", "pooling", "missing"), [("Vim", "token", "cls_token"), ("ARM", "map", "attn_pool.latent")]
)
def test_features_that_random_parameters_read_are_refused(tmp_path, encoder, pooling, missing):
    """As after autoregressive pretraining, which has neither a class token nor a pooling."""
    make = dict(ARM=ARM, Vim=Vim)[encoder]
    torch.save(make(SMALL, img_size=32, cls_token=None).state_dict(), tmp_path / "encoder.pth")
    cfg = load_config(str(ROOT / "cls_configs/arm_b_in1k.py"), {"data_root": f"{tmp_path}/"})
    for split in ("train", "val"):
        (tmp_path / split / "class").mkdir(parents=True)
    cfg.model = dict(type=f"{encoder}Classifier", arch=SMALL, img_size=32, num_classes=2, global_pool=pooling)
    with pytest.raises(
        CheckpointError, match=rf"encoder.pth lacks {missing}.*global_pool=avg .Vim: cls_configs/vim_b_lin"
    ):
        measure_images(cfg, str(tmp_path / "encoder.pth"), 5, 0.07)


def test_the_probe_of_vim_reads_patches():
    cfg = load_config(str(ROOT / "cls_configs/vim_b_linear.py"))
    cfg.model.update(arch=SMALL, img_size=32, init_cfg=None)
    model = MODELS.build(cfg.model)
    assert model.cls_token_position is None and model.global_pool == "avg" and model.scans == 1
