"""Features of an encoder: receptive fields, shares of scan directions, colours, and the tool that draws them."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.func import functional_call

from arm_backbone.arm import ARM
from arm_backbone.scan_order import scan_orders
from arm_backbone.vim import VimClassifier
from arm_backbone.vmamba import VMamba
from arm_pretrain import ARMPretrainer, MAEPretrainer, MoCoPretrainer
from arm_toolkit.analysis.features import (
    _of_direction,
    direction_shares,
    layers,
    load_encoder,
    principal_colors,
    radius,
    receptive_fields,
)
from tests.helpers.runs import pretrain_config, train
from tests.helpers.small_models import VMAMBA_ARCH
from tests.helpers.tools import call_tool

ARCH = dict(embed_dims=32, num_layers=4)


def encoder(scans: int, **arguments) -> ARM:
    torch.manual_seed(0)
    return ARM(ARCH, img_size=80, scans=scans, **arguments).double().eval()


@pytest.mark.parametrize("scans", [1, 4])
def test_receptive_fields_follow_the_scans(scans):
    fields = receptive_fields(encoder(scans), torch.randn(2, 3, 80, 80, dtype=torch.float64))
    assert fields.shape == (4, 80, 80)
    patches = fields.unflatten(2, (5, 16)).unflatten(1, (5, 16)).amax((2, 4)).flatten(1)  # (N, 25), the centre is 12
    assert (patches[:, :13] > 0).all()
    assert (patches[:, 13:] > 0).all() if scans == 4 else (patches[:, 13:] == 0).all()


@pytest.mark.parametrize("side", [80, 96])
def test_radius_of_known_fields(side):
    """The field is 1 in the centre patch (16 x 16): half of it is within 6 pixels of the centre, all within 8."""
    field = torch.zeros(side, side)
    centre = side // 16 // 2 * 16
    field[centre : centre + 16, centre : centre + 16] = 1
    assert radius(field, 16) == 6 and radius(field, 16, 1.0) == 8
    assert radius(torch.ones(side, side), 16, 1.0) == centre + 8


def test_shares_add_up_to_1_and_a_silent_direction_has_0():
    model = encoder(4, cls_token="middle")
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    mixer = model.blocks[1].mixer
    with torch.no_grad():
        mixer.D[2] = 0
        mixer.x_proj_weight[2, -mixer.d_state :] = 0  # C, which reads the state out
    shares = direction_shares(model, images)
    assert shares.shape == (4, 4, 2, 4, 6)
    torch.testing.assert_close(shares.sum(1), torch.ones(4, 2, 4, 6, dtype=torch.float64))
    assert (shares[1, 2] == 0).all() and (shares[1, [0, 1, 3]] > 0).all() and (shares[0] > 0).all()
    x, orders = torch.randn(1, 24, 32, dtype=torch.float64), scan_orders(4, 6)
    parts = [functional_call(mixer, _of_direction(mixer, k), (x, orders[k : k + 1])) for k in range(4)]
    torch.testing.assert_close(sum(parts) / 4, mixer(x, orders))


def test_the_last_layer_is_the_backbones_output():
    model, images = encoder(4, out_indices=(3,)), torch.randn(1, 3, 48, 96, dtype=torch.float64)
    with torch.no_grad():
        *_, (last, grid) = layers(model, images)
        torch.testing.assert_close(model.out_norms[0](last).transpose(1, 2).unflatten(2, grid), model(images)[0])


def test_groups_of_features_have_different_colours():
    features = torch.zeros(4, 6, 8)
    features[:, 3:] = torch.arange(8.0)
    colours = principal_colors(features + 1e-3 * torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0)))
    assert colours.shape == (4, 6, 3) and colours.min() >= 0 and colours.max() <= 1
    assert (colours[:, :3, 0] - colours[:, 3:, 0]).abs().min() > 0.9


def test_the_tool_draws_a_checkpoint(shapes, tmp_path, capsys):
    train(pretrain_config(shapes, **{"train_cfg.max_epochs": 2}), tmp_path / "run")
    checkpoint, images = tmp_path / "run/epoch_2.pth", shapes / "coco/val2017"
    assert load_encoder(str(checkpoint)).scans == 1
    assert call_tool("visualize_features.py", checkpoint, images, "--out", tmp_path / "one", "--count", 2) == 0
    assert "--scans 4" in capsys.readouterr().out
    arguments = ("--out", tmp_path / "four", "--count", 2, "--scans", 4)
    assert call_tool("visualize_features.py", checkpoint, images, *arguments) == 0
    assert {p.name for p in (tmp_path / "one").iterdir()} == {"features.png", "receptive_field.png"}
    names = {"features.png", "receptive_field.png", "directions.png"}
    assert {p.name for p in (tmp_path / "four").iterdir()} == names
    for name in names:
        assert np.asarray(Image.open(tmp_path / "four" / name)).std() > 10


def test_the_tool_draws_vim(shapes, tmp_path):
    """One scan copied to its two directions, whose shares add up to 1."""
    torch.manual_seed(0)
    state = ARMPretrainer(ARCH, img_size=96, cluster_side=2, decoder_dim=64, encoder="Vim").state_dict()
    torch.save(dict(state_dict=state), tmp_path / "vim.pth")
    model = load_encoder(str(tmp_path / "vim.pth"), 4)
    assert model.scans == 2
    shares = direction_shares(model, torch.randn(1, 3, 64, 64))
    torch.testing.assert_close(shares.sum(1), torch.ones_like(shares[:, 0]))
    arguments = ("--out", tmp_path / "two", "--count", 1, "--scans", 4)
    assert call_tool("visualize_features.py", tmp_path / "vim.pth", shapes / "coco/val2017", *arguments) == 0
    assert (tmp_path / "two/directions.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("make", "scans"),
    [
        (lambda: MAEPretrainer(ARCH, 96, decoder_dim=32, decoder_depth=1, decoder_heads=2), 1),
        (lambda: MoCoPretrainer(ARCH, 96, hidden_dim=32, out_dim=8), 4),
        (lambda: VimClassifier(ARCH, img_size=96, num_classes=3), 2),
    ],
    ids=["MAE", "MoCo", "Vim"],
)
def test_the_tool_draws_other_ways_of_pretraining(make, scans, shapes, tmp_path):
    torch.save(dict(state_dict=make().state_dict()), tmp_path / "weights.pth")
    arguments = ("--out", tmp_path / "out", "--count", 1)
    assert call_tool("visualize_features.py", tmp_path / "weights.pth", shapes / "coco/val2017", *arguments) == 0
    assert (tmp_path / "out/directions.png").exists() == (scans > 1)
    assert np.asarray(Image.open(tmp_path / "out/features.png")).std() > 10


def test_unusable_files_are_one_line(shapes, tmp_path, capsys):
    train(pretrain_config(shapes, **{"train_cfg.max_epochs": 2}), tmp_path / "run")
    (tmp_path / "empty").mkdir()
    capsys.readouterr()
    for tool in ("visualize_features.py", "reconstruct.py"):
        assert call_tool(tool, tmp_path / "run/epoch_2.pth", tmp_path / "empty") == 2
        assert capsys.readouterr().err.startswith("error: no image")
    torch.save(dict(weight=torch.zeros(2)), tmp_path / "other.pth")
    assert call_tool("visualize_features.py", tmp_path / "other.pth", tmp_path, "--out", tmp_path / "out") == 2
    assert "no ARM weights" in capsys.readouterr().err and not (tmp_path / "out").exists()
    torch.save(VMamba(VMAMBA_ARCH).state_dict(), tmp_path / "vmamba.pth")
    assert call_tool("visualize_features.py", tmp_path / "vmamba.pth", tmp_path, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "vmamba.pth holds VMamba" in error and "give a checkpoint of ARM or Vim" in error
