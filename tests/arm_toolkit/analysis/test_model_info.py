"""Parameters and FLOPs equal counts by hand, and every kind of model gets a table."""

import re

import pytest
import timm
import torch

from arm_backbone.ops.scan import scan_flops
from arm_toolkit.analysis.model_info import Part, count, describe, from_config, from_name
from tests.helpers.paths import ROOT
from tests.helpers.tools import call_tool

BLOCKS, LENGTH, DIM, HIDDEN, RANK, STATE, TAPS, SCANS = 4, 4 * 6 + 1, 32, 85, 2, 16, 4, 4


def totals(parts: dict[str, Part]) -> tuple[int, int]:
    return sum(p.parameters for p in parts.values()), sum(p.flops for p in parts.values())


def rows(table: str) -> dict[str, tuple[float, float | str]]:
    """Part -> (parameters in millions, GFLOPs or the words in place of a number)."""
    found = re.findall(r"^\| (?!part)(.+?) +\| +([\d.]+) \| +(.+?) \|$", table, re.M)
    assert found[-1][0] == "total"
    return {part: (float(m), float(g) if re.fullmatch(r"[\d.]+", g) else g) for part, m, g in found}


def sums_to_total(table: dict) -> bool:
    """Whether the rows sum to the total, up to their rounding to three decimals."""
    *parts, (parameters, flops) = table.values()
    columns = [[p for p, _ in parts], [f for _, f in parts if isinstance(f, float)]]
    return all(abs(sum(c) - total) < 0.001 * len(parts) for c, total in zip(columns, (parameters, flops), strict=True))


@pytest.fixture(scope="module")
def small() -> dict[str, Part]:
    """Counts for 64 x 96 pixels: 4 x 6 tokens and a class token."""
    with torch.device("meta"):
        model = timm.create_model("arm_base_patch16_224", arch=dict(embed_dims=DIM, num_layers=BLOCKS), num_classes=10)
    return count(model, (64, 96))


@pytest.mark.parametrize(("arch", "millions"), [("base", 85.032), ("large", 297.036), ("huge", 662.682)])
def test_sizes_of_the_paper(arch, millions):
    """ARM Table 1: 85 M, 297 M and 662 M."""
    model, (channels, *size) = from_name(f"arm_{arch}_patch16_224")
    parts = count(model, tuple(size), channels)
    assert totals(parts)[0] == sum(p.numel() for p in model.parameters())
    assert round(totals(parts)[0] / 1e6, 3) == millions


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("vim_base_patch16_224", 97.598),  # ARM Table 2: 98 M, 340 M and 755 M; VMamba-B 89 M
        ("vim_large_patch16_224", 340.035),
        ("vim_huge_patch16_224", 755.418),
        ("vmamba_base_224", 88.558),
        ("deit_base_patch16_224", 86.568),
        ("regnety_160", 83.590),
    ],
)
def test_sizes_of_the_encoders_to_compare_with(name, millions):
    model, (channels, *size) = from_name(name)
    assert round(totals(count(model, tuple(size), channels))[0] / 1e6, 3) == millions


@pytest.mark.parametrize(
    ("part", "by_hand"),
    [
        ("patch_embed", 2 * (LENGTH - 1) * 3 * 16 * 16 * DIM),
        ("blocks: in_proj, out_proj", BLOCKS * 2 * LENGTH * (DIM * 2 * DIM + DIM * DIM)),
        ("blocks: mlp", BLOCKS * 2 * LENGTH * 3 * DIM * HIDDEN),
        ("blocks: x_proj, dt_proj", BLOCKS * SCANS * 2 * LENGTH * DIM * ((RANK + 2 * STATE) + RANK)),
        ("blocks: convolution", BLOCKS * SCANS * 2 * LENGTH * DIM * TAPS),
        ("blocks: scan", BLOCKS * SCANS * LENGTH * DIM * (7 * STATE + 3)),
        ("blocks: norms", 0),
        ("head", 2 * DIM * 10),
    ],
)
def test_flops_equal_counts_by_hand(small, part, by_hand):
    assert small[part].flops == by_hand


def test_scan_formula_is_the_operators(small):
    assert small["blocks: scan"].flops == BLOCKS * scan_flops(1, SCANS, LENGTH, DIM, STATE)


def test_nothing_else_is_counted_and_nothing_twice(small):
    assert set(small) == {
        "patch_embed",
        "position and class token",
        *(f"blocks: {p}" for p in ("in_proj, out_proj", "convolution", "scan", "x_proj, dt_proj", "mlp", "norms")),
        "norm",
        "head",
    }


def test_flops_grow_with_the_area():
    """Linearly, except for the class token: no part compares all pairs of tokens."""
    model, _ = from_name("arm_base_patch16_224")
    once, twice = (totals(count(model, size))[1] for size in ((224, 224), (224, 448)))
    assert twice / once == pytest.approx(2, abs=0.01)


def test_the_model_is_built_for_the_image_size(capsys):
    """The position table grows with the image, also that of timm's own models."""
    for name, tokens, dim in (("arm_tiny_patch16_224", 8 * 6 + 1, 192), ("deit_tiny_patch16_224", 8 * 6 + 1, 192)):
        model, shape = from_name(name, (128, 96))
        assert shape == (3, 128, 96)
        position = sum(p.numel() for n, p in model.named_parameters() if n.endswith("pos_embed"))
        assert position == tokens * dim
    assert call_tool("model_info.py", "arm_tiny_patch16_224", "--img-size", 128, 96) == 0
    assert "one image of 128 x 96 pixels" in capsys.readouterr().out


def test_a_model_of_timm(capsys):
    """DeiT-B: 86.6 M parameters, and 17.6 G multiply-adds in its paper."""
    assert call_tool("model_info.py", "deit_base_patch16_224") == 0
    out = capsys.readouterr().out
    table = rows(out)
    assert table["total"][0] == pytest.approx(86.568) and table["total"][1] == pytest.approx(2 * 17.6, abs=0.1)
    length, dim = 197, 768
    attention = 12 * (2 * length * 4 * dim**2 + 2 * 2 * length**2 * dim)  # projections, products
    assert table["blocks.attn"][1] == pytest.approx(attention / 1e9, abs=0.001)
    assert sums_to_total(table) and "scan" not in out


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Work in a folder without checkpoints/."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_model_whose_constructor_reads_tensor_values(monkeypatch):
    """Such a model (a RegNet of older timm) cannot be built on the meta device, whose tensors have no values."""

    def computed(pretrained_cfg_overlay=None) -> torch.nn.Module:
        model = torch.nn.Linear(len(torch.unique(torch.tensor([3, 3, 5]))), 7)
        model.pretrained_cfg = dict(input_size=(3, 64, 64))
        return model

    monkeypatch.setattr(timm, "is_model", lambda _: True)
    monkeypatch.setattr(timm, "create_model", lambda _, **options: computed(**options))
    model, shape = from_name("computed")
    assert model.weight.shape == (7, 2) and model.weight.is_meta and shape == (3, 64, 64)


def test_a_detector_without_its_checkpoint(elsewhere, capsys):
    """The RPN's size is known; the rows of the box and mask heads say that they are not counted."""
    assert call_tool("model_info.py", ROOT / "det_configs/mask_rcnn_arm_b.py") == 0
    out = capsys.readouterr().out
    table = rows(out)
    assert "one image of 800 x 1280 pixels" in out and "GFLOPs exclude roi_head" in out
    assert {g for part, (_, g) in table.items() if part.startswith("roi_head")} == {"not counted"}
    assert table["rpn_head.rpn_conv"][0] == 0.590  # 3 x 3 x 256 x 256, and a bias
    cells = sum((800 // s) * (1280 // s) for s in (4, 8, 16, 32)) + 13 * 20
    assert table["rpn_head.rpn_conv"][1] == pytest.approx(2 * cells * 9 * 256**2 / 1e9, abs=0.001)
    scan = 12 * scan_flops(1, 4, 50 * 80, 768, 16)
    assert table["backbone.blocks: scan"][1] == pytest.approx(scan / 1e9, abs=0.001)
    assert sums_to_total(table)


def test_a_segmentor_without_its_checkpoint(elsewhere, capsys):
    assert call_tool("model_info.py", ROOT / "seg_configs/upernet_arm_b.py") == 0
    out = capsys.readouterr().out
    table = rows(out)
    assert "one image of 512 x 512 pixels" in out
    assert {g for part, (_, g) in table.items() if part.startswith("auxiliary_head")} == {"training only"}
    fused = 2 * 128 * 128 * 9 * 4 * 512 * 512  # four levels of 512 channels at stride 4
    assert table["decode_head.fpn_bottleneck"][1] == pytest.approx(fused / 1e9, abs=0.001)
    assert sums_to_total(table)


def test_the_pretraining_encoder_reads_all_clusters_but_one(capsys):
    assert call_tool("model_info.py", ROOT / "pretrain/configs/arm_b.py") == 0
    table = rows(capsys.readouterr().out)
    assert table["encoder.blocks: scan"][1] == pytest.approx(12 * scan_flops(1, 1, 8 * 16, 768, 16) / 1e9, abs=0.001)
    # skip features: 4 x 768 channels to 4 x 512, for eight clusters
    assert table["decoder.skip_proj"][1] == pytest.approx(2 * 8 * 16 * 4 * 768 * 4 * 512 / 1e9, abs=0.001)
    assert sums_to_total(table)


@pytest.mark.parametrize(
    ("config", "encoder", "decoder", "millions"),
    [
        ("arm_b.py", 20.4, 5.0, 99.35),
        ("mae/mae_arm_b_300e.py", 8.0, 10.7, 106.09),
        ("mae/mae_vim_b_300e.py", 9.4, 10.7, 117.27),
    ],
)
def test_what_pretraining_costs(config, encoder, decoder, millions):
    """By hand: AR reads 8 of 9 clusters of 16 patches; MAE 49 of 196, and its decoder all."""
    model, (channels, *size) = from_config(str(ROOT / "pretrain/configs" / config))
    parts = count(model, tuple(size), channels)
    for half, by_hand in (("encoder", encoder), ("decoder", decoder)):
        flops = sum(p.flops for name, p in parts.items() if name.startswith(half))
        assert flops / 1e9 == pytest.approx(by_hand, rel=0.02), half
    assert totals(parts)[0] / 1e6 == pytest.approx(millions, abs=0.005)


def test_vmambas_parts():
    """The rows are those of ARM's blocks, added over the stages."""
    model, (channels, *size) = from_name("vmamba_tiny_224")
    parts = count(model, tuple(size), channels)
    blocks = {f"blocks: {p}" for p in ("in_proj, out_proj", "convolution", "scan", "x_proj, dt_proj", "mlp", "norms")}
    assert set(parts) == {"stem", "downsampling", *blocks, "norm", "head"}
    tokens = sum(
        depth * side**2 * width for side, width, depth in zip((56, 28, 14, 7), (96, 192, 384, 768), (2, 2, 8, 2))
    )
    assert parts["blocks: scan"].flops == 4 * tokens * (7 + 3)
    assert parts["blocks: convolution"].flops == 2 * 9 * tokens


def test_the_momentum_encoder_is_said_to_be_for_training(capsys):
    assert call_tool("model_info.py", ROOT / "pretrain/configs/moco/moco_arm_b_300e.py") == 0
    out = capsys.readouterr().out
    table = rows(out)
    assert {g for part, (_, g) in table.items() if part.startswith("momentum_encoder")} == {"training only"}
    assert "exclude momentum_encoder" in out and sums_to_total(table)


def test_a_classification_configuration_is_counted_like_its_timm_name(tmp_path):
    path = tmp_path / "classifier.py"
    path.write_text("custom_imports = dict(imports='arm_backbone')\nmodel = dict(type='ARMClassifier', arch='tiny')")
    ours, named = (describe(name).splitlines()[2:] for name in (str(path), "arm_tiny_patch16_224"))
    assert ours == named
    assert from_config(str(path), (64, 96))[0].img_size == (64, 96)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["arm_bas_patch16_224"], "did you mean arm_base_patch16_224"),
        (["arm_base"], "did you mean arm_base_patch16_224"),
        (["qqqq"], "timm.list_models"),
        (["arm_base_patch16_224.nobody"], "nobody"),
        (["det_configs/nothing.py"], "does not exist"),
        ([ROOT / "det_configs/_base_/coco_instance.py"], "has no key model"),
        (["arm_base_patch16_224", "--img-size", 8], "smaller than one patch"),
        (["arm_base_patch16_224", "--img-size", 1, 2, 3], "--img-size 1 2 3"),
        ([ROOT / "pretrain/configs/arm_b.py", "--img-size", 100], "100"),
    ],
)
def test_errors_are_one_line(arguments, message, capsys):
    assert call_tool("model_info.py", *arguments) == 2
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == 1 and err.startswith("error: ") and message in err


def test_the_reference_scan_is_an_error(monkeypatch, capsys):
    """It is not an operator with a FLOP formula, so the scan would count as 0."""
    monkeypatch.setenv("ARM_SCAN_BACKEND", "reference")
    assert call_tool("model_info.py", "arm_tiny_patch16_224") == 2
    assert "ARM_SCAN_BACKEND=reference" in capsys.readouterr().err
