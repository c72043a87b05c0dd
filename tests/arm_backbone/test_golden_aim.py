"""Exactness of AIM against its public code, file by file (../shared/golden_encoders/aim_*)."""

import json

import pytest
import timm
import torch
import torch.nn.functional as F

from arm_backbone import aim
from arm_backbone.aim import from_official, prefix_mask
from tests.helpers.aim_names import to_official

FILES = ("aim_tiny_56", "aim_tiny_42x70")
SIZES = {"600M": "600m", "1B": "1b", "3B": "3b", "7B": "7b"}


def build(file, **arguments) -> aim.AIM:
    config = json.loads(str(file.file["config_json"]))["constructor"]
    names = dict(embed_dim="embed_dim", num_blocks="depth", num_heads="num_heads")
    given = {ours: config[theirs] for theirs, ours in names.items()}
    given |= dict(probe_layers=config["probe_layers"], num_classes=config["num_classes"])
    model = timm.create_model("aim_600m_patch14_224", **given | arguments)
    model.load_state_dict(from_official(file.under("state/")))
    return model.to(file.dtype).eval()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("part", ["", "_prefix"])
@pytest.mark.parametrize("causal", [False, True])
def test_hidden_states_logits_and_gradients(load_encoder, monkeypatch, name, part, causal):
    file = load_encoder(name)
    if causal and not part:
        pytest.skip("a causal model has no released numbers without a prefix")
    model = build(file, causal=causal)
    table = file["out/pos_embed"]
    images = file["in/images"]
    grid = tuple(size // 14 for size in images.shape[2:])
    exact = aim.sincos_pos_embed(*grid, 48, dtype=torch.float64)[0].flatten(0, 1)
    torch.testing.assert_close(exact.float(), table.float(), rtol=0, atol=2e-7)
    monkeypatch.setattr(aim, "sincos_pos_embed", lambda *_, **__: table.view(1, *grid, 48))
    mask = None
    if part:
        mask = prefix_mask(file["in/prefix_lengths"], len(table))
        position = torch.arange(len(table))
        outside = file["in/mask"][:, None, None]  # True for the tokens outside the prefix
        assert torch.equal(mask, (position <= position[:, None]) | ~outside)
    final, hidden = model.forward_intermediates(images, output_fmt="NLC", attn_mask=mask)
    for i, x in enumerate(hidden, start=1):
        file.check(f"out{part}/hidden_after_layer_{i:02d}", x)
    file.check(f"out{part}/post_trunk_norm", final)
    if not part:
        embedded = model.patch_embed(images)
        file.check("out/patch_embed", embedded.flatten(1, 2))
        file.check("out/tokens", model._pos_embed(embedded))
        file.check("out/pos_embed", table)
    features = model.forward_features(images, mask)
    logits = model.forward_head(features)
    loss = F.cross_entropy(logits, file["in/labels"])
    for key, value in dict(features=features, logits=logits, loss=loss).items():
        file.check(f"out{part}/{key}", value)
    loss.backward()
    gradients = to_official({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    for key, value in gradients.items():
        file.check(f"grad{part}/{key}", value)
    silent = json.loads(str(file.file["config_json"]))["parameters_without_gradient"]
    ours = to_official({key: p for key, p in model.named_parameters() if not p.requires_grad})
    assert set(ours) == set(silent) and gradients.keys().isdisjoint(silent)
    if not part:
        model.head.train()
        model.head.bn.reset_running_stats()
        model.head.bn.load_state_dict(
            {key.removeprefix("head.bn."): value for key, value in file.under("state/").items() if ".bn." in key}
        )
        file.check("out/head_train_logits", model.head(features.detach()))
        for key in ("running_mean", "running_var"):
            file.check(f"out/head_train_{key}", getattr(model.head.bn, key))
    others = {key for key in file.unchecked() if "exact_table" not in key}
    assert all(("_prefix" in key.split("/")[0]) != bool(part) for key in others), others


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("prefix", ["", "prefix_"])
def test_table_of_the_formula(load_encoder, name, prefix):
    """In float64 the table is the formula's, not a float32 rounding of it."""
    file = load_encoder(name)
    if file.precision == "float32":
        pytest.skip("float64 only")
    model, images = build(file), file["in/images"]
    mask = prefix_mask(file["in/prefix_lengths"], file["in/mask"].shape[1]) if prefix else None
    logits = model(images, mask)
    hidden = model.forward_intermediates(images, output_fmt="NLC", intermediates_only=True, attn_mask=mask)
    results = dict(logits=logits, loss=F.cross_entropy(logits, file["in/labels"]), hidden_after_layer_04=hidden[-1])
    results["tokens"] = model._pos_embed(model.patch_embed(images))
    for key, value in results.items():
        expected = torch.tensor(file.file[f"out64_exact_table/{prefix}{key}"])
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize("size", SIZES)
def test_layout_of_the_released_sizes(golden_encoders, size):
    keys = json.loads((golden_encoders / "aim_600m_keys.json").read_text())
    counts = json.loads((golden_encoders / "aim_param_counts.json").read_text())[f"aim_{size}"]
    with torch.device("meta"):
        model = timm.create_model(f"aim_{SIZES[size]}_patch14_224")
    theirs = to_official(model.state_dict())
    assert len(theirs) == counts["state_dict_keys"]
    assert {*from_official(theirs)} == {*model.state_dict()}
    for part in ("preprocessor", "trunk", "head"):
        inside = to_official(dict(model.named_parameters()))
        assert sum(p.numel() for key, p in inside.items() if key.startswith(part)) == counts[part]
    if f"aim_{size}" in keys:
        assert {key: list(value.shape) for key, value in theirs.items()} == keys[f"aim_{size}"]
