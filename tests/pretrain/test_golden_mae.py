"""Exactness of MAE against its public code (../shared/golden_encoders/mae_*): masks, targets, decoder, loss, gradients.

The encoder of those files is a vision transformer; a stand-in with its weights runs in the place of ARM.
"""

import json
from functools import partial

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from arm_backbone.ops import ScanOrders
from arm_backbone.optim import warmup_cosine
from arm_backbone.pos_embed import sincos_pos_embed
from arm_pretrain import MAEPretrainer
from arm_pretrain.masking import mask_patches
from arm_pretrain.targets import patchify

MODULES = {"norm": "decoder.norm_tokens", "decoder_embed": "decoder.embed", "decoder_norm": "decoder.norm"}
MODULES |= {"decoder_pred": "decoder.head", "decoder_blocks": "decoder.blocks"}


class TransformerTrunk(nn.Module):
    """A vision transformer with the class token first, and the methods of an ARM trunk."""

    embed_dims, patch_size, cls_token_position = 48, 16, "first"

    def __init__(self, size: int) -> None:
        super().__init__()
        self.img_size, self.grid_size = (size, size), (size // 16, size // 16)
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, 48, 16, 16)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 48))
        table = sincos_pos_embed(*self.grid_size, 48).flatten(1, 2)
        self.register_buffer("table", table)
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(Block(48, 4, qkv_bias=True, norm_layer=norm) for _ in range(2))
        self.hidden: list[Tensor] = []

    def embed(self, images: Tensor):
        x = self.patch_embed.proj(images).flatten(2).mT
        self.hidden = [x]
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x + self.table], 1)
        return x, self.grid_size

    def orders(self, grid) -> ScanOrders:
        return ScanOrders(torch.arange(grid[0] * grid[1] + 1)[None])

    def block_outputs(self, x: Tensor, orders: ScanOrders):
        self.hidden.append(x)
        for block in self.blocks:
            x = block(x)
            self.hidden.append(x)
            yield x

    def patch_tokens(self, x: Tensor) -> Tensor:
        return x[:, 1:]


def ours(name: str) -> str:
    """Our name of a parameter."""
    first, dot, rest = name.partition(".")
    if first == "mask_token":
        return name
    return MODULES[first] + dot + rest if first in MODULES else f"encoder.{name}"


@pytest.mark.parametrize(("name", "size"), [("mae_tiny_64", 64), ("mae_tiny_80", 80)])
def test_model(load_encoder, name, size, monkeypatch):
    file = load_encoder(name)
    ratio = json.loads(str(file.file["config_json"]))["mask_ratio"]
    arch = dict(embed_dims=48, num_layers=1)
    model = MAEPretrainer(arch, size, mask_ratio=ratio, decoder_dim=32, decoder_depth=2, decoder_heads=4)
    model.encoder = TransformerTrunk(size)
    monkeypatch.setattr("arm_pretrain.mae.grid_orders", lambda h, w, *_: model.encoder.orders((h, w)))
    state = {k: v for k, v in file.under("state/").items() if "pos_embed" not in k}
    load = model.load_state_dict({ours(k): v for k, v in state.items()}, strict=False)
    assert load.unexpected_keys == [] and load.missing_keys == ["encoder.table"]
    for table, key in ((model.encoder.table, "pos_embed"), (model.decoder_pos_embed, "decoder_pos_embed")):
        torch.testing.assert_close(table, file.under("state/")[key][:, 1:], atol=2e-7, rtol=0)
        table.copy_(file.under("state/")[key][:, 1:])
    model.to(file.dtype)

    images, noise = file["in/images"], file["in/noise"]
    predictions, mask = model.predict_patches(images, noise)
    loss = model.loss(images, predictions, mask)
    loss.backward()
    # theirs keeps the patches shuffled, ours in raster order
    theirs = torch.cat([torch.zeros(3, 1, dtype=torch.long), file["out/ids_keep"].argsort(1) + 1], 1)

    def shuffled(x: Tensor) -> Tensor:
        back = theirs.argsort(1)
        return x.gather(1, back.unsqueeze(2).expand_as(x))

    tokens, kept, _ = model.encode(images, noise)
    file.check("out/patch_embed", model.encoder.hidden[0])
    file.check("out/encoder_in", shuffled(model.encoder.hidden[1]))
    for i, hidden in enumerate(model.encoder.hidden[2:], 1):
        file.check(f"out/hidden_after_layer_{i:02d}", shuffled(hidden))
    file.check("out/latent", shuffled(model.decoder.norm_tokens(tokens)))
    assert torch.equal(kept[:, 1:] - 1, file["out/ids_keep"].sort(1).values)
    assert torch.equal(mask, file["out/mask"])
    target = model.targets(images)
    tolerance = (1e-4, 1e-8) if file.precision == "float32" else None
    file.check("out/target_raw", patchify(images, 16))
    file.check("out/target", target, tolerance)
    file.check("out/target_every_16th_value", target[..., ::16])
    file.check("out/pred", predictions)
    file.check("out/pred_every_16th_value", predictions[..., ::16])
    file.check("out/loss_per_patch", model.patch_losses(images, predictions))
    file.check("out/loss", loss)
    for key in (k.partition("/")[2] for k in file.file.files if k.startswith("grad/")):
        file.check(f"grad/{key}", model.get_parameter(ours(key)).grad)
    model.target = "pixels"
    file.check("out/loss_without_norm_pix", model.loss(images, predictions, mask))


def test_masks(golden_encoders):
    file = np.load(golden_encoders / "mae_masking_cases.npz")
    cases = json.loads(str(file["config_json"]))["cases"]
    assert len(cases) == 11
    for case, config in cases.items():
        kept, mask = mask_patches(torch.tensor(file[f"{case}/noise"]), config["mask_ratio"])
        assert kept.shape[1] == config["kept"]
        assert torch.equal(kept, torch.tensor(file[f"{case}/ids_keep"]).sort(1).values)
        assert torch.equal(mask, torch.tensor(file[f"{case}/mask"]))


@pytest.mark.parametrize("side", [4, 5])
def test_position_tables(golden_encoders, side):
    table = torch.tensor(np.load(golden_encoders / "sincos_tables.npz")[f"mae_{side}x{side}_64"])
    ours = sincos_pos_embed(side, side, 64).flatten(1, 2)
    torch.testing.assert_close(ours, table[:, 1:].float(), atol=2e-7, rtol=0)


@pytest.mark.parametrize("name", ["mae_pretrain_800ep", "mae_pretrain_1600ep"])
def test_learning_rates(golden_encoders, name):
    schedule = json.loads((golden_encoders / "schedules.json").read_text())[name]
    for epoch, lr in schedule["rows_epoch_lr"]:
        ours = schedule["peak_lr"] * warmup_cosine(epoch, schedule["warmup_epochs"], schedule["epochs"])
        assert ours == pytest.approx(lr, rel=1e-12, abs=0)
