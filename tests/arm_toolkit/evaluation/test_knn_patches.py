"""Segmentation by nearest patches: labels of patches, votes in pixels, and the tool."""

import json

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from arm_backbone.checkpoint.errors import CheckpointError
from arm_toolkit.errors import ConfigError
from arm_toolkit.evaluation import knn_patches
from arm_toolkit.evaluation.knn import vote
from arm_toolkit.evaluation.knn_patches import _padded_labels, _to_pixels, class_shares, covered, knn_iou
from tests.helpers.runs import seg_config
from tests.helpers.tools import call_tool

pytestmark = pytest.mark.xdist_group("inference")


@pytest.fixture
def cfg(shapes):
    cfg = seg_config(shapes)
    cfg.model.backbone.init_cfg = None
    return cfg


@pytest.fixture
def model(cfg):
    torch.manual_seed(1)  # the tool's random weights have seed 0
    with DefaultScope.overwrite_default_scope("mmseg"):
        return MODELS.build(cfg.model).eval()


def test_shares_of_a_patch():
    labels = torch.tensor([[0, 0, 2, 255], [0, 1, 2, 255]])
    shares = class_shares(labels, (1, 2))
    assert shares.tolist() == [[[0.75, 0.25, 0.0], [0.0, 0.0, 0.5]]]


def test_a_patch_finds_itself(cfg, model):
    """With training images as test images and one neighbour, every patch gets the class of most of its pixels."""
    cfg.test_dataloader.dataset.update({key: cfg.train_dataloader.dataset[key] for key in ("data_root", "data_prefix")})
    truth = knn_iou(model, cfg, k=1, temperature=0.07)
    assert truth.shape == (model.num_classes,) and truth.min() > 60  # patches of 16 pixels have coarse edges
    spread = knn_iou(model, cfg, k=200, temperature=1e3)  # every patch votes with the same weight
    assert np.nanmean(spread) < 0.7 * truth.mean()


def test_an_encoder_that_diverged(cfg, model):
    torch.nn.init.constant_(model.backbone.out_norms[-1].bias, torch.nan)
    with pytest.raises(CheckpointError, match="the encoder has diverged"):
        knn_iou(model, cfg, k=1, temperature=0.07)


def test_more_features_than_memory_are_refused_at_the_first_image(cfg, model, monkeypatch):
    monkeypatch.setattr(knn_patches, "total_memory", lambda device: 2**10)
    with pytest.raises(
        ConfigError, match="would take 0 GiB of 0 GiB; take fewer images: train_dataloader.dataset.indices"
    ):
        knn_iou(model, cfg, k=1, temperature=0.07)


def test_the_tool(cfg, model, tmp_path, capsys):
    """The same figure as in Python, from a checkpoint of the backbone; without one, from random weights."""
    cfg.dump(tmp_path / "seg.py")
    torch.save(model.backbone.state_dict(), tmp_path / "backbone.pth")
    out = tmp_path / "knn.json"
    assert call_tool("knn.py", tmp_path / "seg.py", tmp_path / "backbone.pth", "--k", "5", "--json", out) == 0
    found = json.loads(out.read_text())["mIoU"]
    assert found == pytest.approx(np.nanmean(knn_iou(model, cfg, k=5, temperature=0.07)))
    assert f"k-NN (k 5, temperature 0.07): mIoU {found:.2f}" in capsys.readouterr().out
    assert call_tool("knn.py", tmp_path / "seg.py", "--k", "5", "--json", out) == 0
    assert json.loads(out.read_text())["mIoU"] != found


def test_labels_keep_their_place():
    """An image resized to half its size and padded on the right: the label map is, too."""
    truth = torch.zeros(1, 8, 12, dtype=torch.long)
    truth[0, :, 6:] = 1
    sample = SegDataSample(metainfo=dict(img_shape=(4, 6), ori_shape=(8, 12)), gt_sem_seg=PixelData(data=truth))
    padded = _padded_labels(sample, (4, 8))
    assert padded.tolist() == [[0, 0, 0, 1, 1, 1, 255, 255]] * 4
    votes = torch.eye(2)[torch.tensor([0] * 3 + [1] * 5)].repeat(4, 1)
    assert torch.equal(_to_pixels(votes, (4, 8), sample, (4, 8)), truth[0])


def test_patches_that_reach_beyond_the_image():
    """37 patches of 14 pixels on 512: the last covers 8 pixels of the image, and all of these count."""
    size = covered(torch.zeros(1, 3, 512, 512), torch.zeros(37, 37, 1))
    assert size == (518, 518)
    truth = torch.zeros(1, 512, 512, dtype=torch.long)
    truth[0, :, 504:] = 1
    sample = SegDataSample(metainfo=dict(img_shape=(512, 512), ori_shape=(512, 512)), gt_sem_seg=PixelData(data=truth))
    shares = class_shares(_padded_labels(sample, size), (37, 37))
    assert shares[0, 36].tolist() == pytest.approx([0, 8 / 14]) and shares[0, 35].tolist() == [1, 0]


def test_votes_at_a_low_temperature():
    train, labels = torch.eye(3), torch.tensor([0, 1, 2])
    queries = torch.nn.functional.normalize(torch.tensor([[1.0, 0.9, 0.8]]))
    assert vote(train, labels, queries, k=3, temperature=1e-3).argmax(1).tolist() == [0]
    assert vote(train, labels, queries, k=3, temperature=1e-3).sum() >= 1
