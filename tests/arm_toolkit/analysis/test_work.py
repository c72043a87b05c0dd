"""Matrix products and scan steps of encoders and paradigms equal counts by hand."""

import pytest
import timm
import torch
from torch.nn import functional as F

import arm_backbone  # noqa: F401 registers its models
from arm_toolkit.analysis.model_info import from_config, from_name, image_size
from arm_toolkit.analysis.work import Work, work_of
from arm_toolkit.benchmark.pretrain_cases import training_loss
from tests.helpers.paths import ROOT

PATCHES, TOKENS, PIXELS = 14 * 14, 14 * 14 + 1, 3 * 16 * 16


def inner(dim: int, width: int, scans: int) -> int:
    """Multiply-adds per token of a mixer's products: in_proj, out_proj, x_proj, dt_proj."""
    rank = dim // 16
    return 3 * dim * width + scans * width * ((rank + 32) + rank)


def trunk(tokens: int, encoder: str = "ARM", scans: int | None = None, patches: int = PATCHES) -> float:
    """GFLOP of ARM-B's or Vim-B's patch embedding and blocks."""
    if encoder == "ARM":
        block, blocks = inner(768, 768, scans or 4) + 3 * 768 * 2048, 12
    else:
        block, blocks = inner(768, 2 * 768, scans or 2), 24
    return 2 * (patches * PIXELS * 768 + blocks * tokens * block) / 1e9


def attention_decoder(tokens: int, kept: int) -> float:
    """GFLOP of MAE's decoder: 8 blocks of attention 512 wide, between two linear layers."""
    block = 12 * 512**2 + 2 * tokens * 512
    return 2 * (kept * 768 * 512 + 8 * tokens * block + tokens * 512 * PIXELS) / 1e9


def classifier(name: str) -> Work:
    model, (channels, *size) = from_name(name)
    images = torch.empty(2, channels, *size, device="meta")
    return work_of(lambda: F.cross_entropy(model(images), torch.zeros(2, dtype=torch.int64, device="meta")), 2, True)


def pretraining(config: str) -> Work:
    model, (channels, *size) = from_config(str(ROOT / config))
    images = torch.empty(2, channels, *size, device="meta")
    return work_of(training_loss(model.train(), images), 2, backward=True)


def documented(row: str) -> list[str]:
    """The cells of a row of docs/encoders.md, without its title."""
    lines = (ROOT / "docs/encoders.md").read_text().splitlines()
    (cells,) = (line.strip("| ").split(" | ")[1:] for line in lines if line.startswith(f"| {row}"))
    return cells


def test_vim_beside_arm():
    """Vim-B has 1.14 times the products and twice the scan steps of ARM-B."""
    assert documented("Vim-B | 37")[:4] == ["37.4", "1.14", "232", "2.00"]
    ours, theirs = classifier("arm_base_patch16_224"), classifier("vim_base_patch16_224")
    assert ours.forward / 1e9 == pytest.approx(trunk(TOKENS) + 2 * 768e3 / 1e9, rel=1e-6)
    assert theirs.forward / 1e9 == pytest.approx(trunk(TOKENS, "Vim") + 2 * 768e3 / 1e9, rel=1e-6)
    assert round(theirs.forward / ours.forward, 2) == 1.14
    assert ours.scan_steps == 12 * 4 * TOKENS * 768 * 16 and theirs.scan_steps == 2 * ours.scan_steps
    # gradients of inputs and weights, but not of the image
    assert ours.backward == 2 * ours.forward - 2 * PATCHES * PIXELS * 768


@pytest.mark.parametrize(("name", "gflop"), [("deit_base_patch16_224", 35.13), ("regnety_160", 31.88)])
def test_models_without_a_scan(name, gflop):
    work = classifier(name)
    assert work.forward / 1e9 == pytest.approx(gflop, rel=0.01) and work.scan_steps == 0
    assert work.backward == pytest.approx(2 * work.forward, rel=0.01)  # also of RegNetY's convolutions in groups


def test_vmamba():
    """One state, four directions, maps of 56 to 7 tokens a side."""
    work = classifier("vmamba_base_224")
    stages = zip((56, 28, 14, 7), (128, 256, 512, 1024), (2, 2, 15, 2), strict=True)
    assert work.scan_steps == sum(depth * 4 * side**2 * 2 * width for side, width, depth in stages)
    assert work.forward / 1e9 == pytest.approx(30.14, rel=0.001)
    assert work.backward == pytest.approx(2 * work.forward, rel=0.01)


@pytest.mark.parametrize(
    ("config", "by_hand", "row"),
    [
        ("pretrain/configs/arm_b.py", trunk(8 * 16, scans=1, patches=144) + 5.0, "AR,"),
        ("pretrain/configs/vim_b_300e.py", trunk(8 * 16, "Vim", 1, 144) + 5.0, "AR,"),
        ("pretrain/configs/mae/mae_arm_b_300e.py", trunk(49, scans=1) + attention_decoder(196, 49), "MAE,"),
        ("pretrain/configs/mae/mae_vim_b_300e.py", trunk(50, "Vim", 1) + attention_decoder(197, 50), "MAE,"),
        ("pretrain/configs/moco/moco_arm_b_300e.py", 4 * trunk(TOKENS), "MoCo v3,"),
        ("cls_configs/mambamlp_b_in1k.py", trunk(TOKENS), "supervised,"),
    ],
)
def test_paradigms(config, by_hand, row):
    work = pretraining(config)
    cells = [f"{(work.forward + work.backward) / 1e9:.1f}", f"{work.scan_steps / 1e6:.0f}"]
    first = 2 if "vim" in config else 0
    assert documented(row)[first : first + 2] == cells
    assert work.forward / 1e9 == pytest.approx(by_hand, rel=0.01)
    trained = 0.5 if "moco" in config else 1  # the momentum encoder has no gradients
    assert work.backward == pytest.approx(2 * trained * work.forward, rel=0.02)


def test_hand_counts_of_the_parts():
    """AR reads 8 clusters of 16 patches: 20.4 GFLOP; MAE a quarter of the patches: 8, and 10.7 in the decoder."""
    assert trunk(8 * 16, scans=1, patches=144) == pytest.approx(20.4, abs=0.05)
    assert trunk(49, scans=1) == pytest.approx(8.0, abs=0.05) and attention_decoder(196, 49) == pytest.approx(
        10.7, abs=0.05
    )
    assert trunk(50, scans=4) == pytest.approx(8.5, abs=0.05)  # with a class token and four scans


def test_only_the_forward_without_gradients():
    model = timm.create_model("arm_tiny_patch16_224", arch=dict(embed_dims=32, num_layers=2)).to("meta")
    images = torch.empty(3, 3, 32, 32, device="meta")
    once, twice = work_of(lambda: model(images), 3), work_of(lambda: model(images).sum(), 3, backward=True)
    assert once.backward == 0 and twice.backward > 0 and once.forward == twice.forward


@pytest.mark.parametrize("layer", [torch.nn.Conv2d(4, 8, 3, groups=2), torch.nn.ConvTranspose2d(4, 8, 3, groups=2)])
def test_convolutions_in_groups(layer):
    layer, x = layer.to("meta"), torch.empty(2, 4, 9, 7, device="meta", requires_grad=True)
    work = work_of(lambda: layer(x).sum(), 2, backward=True)
    cells = 9 * 7 if isinstance(layer, torch.nn.ConvTranspose2d) else 7 * 5
    assert work.forward == 2 * cells * 9 * 4 * 8 / 2 and work.backward == 2 * work.forward


def test_image_sizes():
    sizes = {"pretrain/configs/arm_b.py": 192, "pretrain/configs/moco/moco_arm_b_300e.py": 224}
    for config, side in sizes.items():
        assert image_size(from_config(str(ROOT / config))[0]) == (side, side)
