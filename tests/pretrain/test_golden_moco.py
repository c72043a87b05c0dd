"""Exactness of MoCo v3 against its public code (../shared/golden_encoders/moco_*): losses, a step, schedules, heads.

The encoder of `moco_step` is a perceptron, which runs in the place of ARM. Two processes: test_moco.py.
"""

import copy
import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from arm_backbone.optim import warmup_cosine
from arm_backbone.pos_embed import sincos_pos_embed
from arm_pretrain import MoCoPretrainer
from arm_pretrain.moco import contrastive_loss, momentum_at
from arm_pretrain.moco_heads import predictor, projector


@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_losses(load_encoder, case):
    file = load_encoder("moco_loss")
    temperature = json.loads(str(file.file["config_json"]))[case]["T"]
    q1, q2, k1, k2 = (file[f"{case}/in/{name}"] for name in ("q1", "q2", "k1", "k2"))
    q1.requires_grad_(), q2.requires_grad_(), k1.requires_grad_()
    losses = contrastive_loss(q1, k2, temperature), contrastive_loss(q2, k1, temperature)
    sum(losses).backward()
    assert k1.grad is None
    out = f"{case}/out64" if file.precision == "float64" else f"{case}/out"
    results = dict(loss_q1_k2=losses[0], loss_q2_k1=losses[1], loss=sum(losses), grad_q1=q1.grad, grad_q2=q2.grad)
    for name, result in results.items():
        file.compare(f"{out}/{name}", result)


class Perceptron(nn.Module):
    """The encoder of `moco_step`: head(tanh(body x))."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(24, 40)
        self.head = projector(40, 48, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


def test_step(load_encoder):
    file = load_encoder("moco_step")
    model = MoCoPretrainer(dict(embed_dims=32, num_layers=1), 32, hidden_dim=48, out_dim=16, momentum=0.97)
    model.base_encoder = Perceptron()
    model.momentum_encoder = copy.deepcopy(model.base_encoder).requires_grad_(False)
    model.load_state_dict(file.under("state_before/"))
    model.to(file.dtype).train()
    views = torch.stack([file["in/x1"], file["in/x2"]], 1)

    outputs: dict[str, list[Tensor]] = dict(z=[], q=[], k=[])
    for name, module in (("z", model.base_encoder), ("q", model.predictor), ("k", model.momentum_encoder)):
        module.register_forward_hook(lambda module, args, output, name=name: outputs[name].append(output))
    loss = model(views, mode="loss")["loss"]
    loss.backward()
    file.check("out/loss", loss)
    for name, (first, second) in outputs.items():
        file.check(f"out/{name}1", first)
        file.check(f"out/{name}2", second)
    for name, parameter in model.named_parameters():
        if name.startswith("momentum_encoder."):
            assert parameter.grad is None
        else:
            file.check(f"grad/{name}", parameter.grad)
    after = "state_after64/" if file.precision == "float64" else "state_after/"
    for name, value in model.state_dict().items():
        if after + name in file.file:
            file.compare(after + name, value)
    model.eval()
    file.check("out/eval_q1", model(file["in/x1"]))
    file.check("out/eval_k1", model.momentum_encoder(file["in/x1"]))
    assert not file.unchecked()


@pytest.mark.parametrize("name", ["vit_base_300ep", "vit_small_300ep_b1024", "resnet50_1000ep"])
def test_schedules(golden_encoders, name):
    schedule = json.loads((golden_encoders / "schedules.json").read_text())[name]
    for epoch, lr, momentum in schedule["rows_epoch_lr_momentum"]:
        ours = schedule["peak_lr"] * warmup_cosine(epoch, schedule["warmup_epochs"], schedule["epochs"])
        assert ours == pytest.approx(lr, rel=1e-12, abs=0)
        assert momentum_at(epoch / schedule["epochs"], schedule["moco_m"]) == pytest.approx(momentum, rel=1e-12)


@pytest.mark.parametrize("name", ["ViT-B (hidden 768)", "ViT-S (hidden 384)"])
def test_heads(golden_encoders, name):
    expected = json.loads((golden_encoders / "moco_heads.json").read_text())[name]
    width = expected["projector"][0]["in"]
    with torch.device("meta"):
        heads = dict(projector=projector(width, 4096, 256), predictor=predictor(4096, 256))
    for part, layers in heads.items():
        assert {key: list(tensor.shape) for key, tensor in layers.state_dict().items()} == expected[f"{part}_keys"]
        assert sum(p.numel() for p in layers.parameters()) == expected[f"{part}_parameters"]
        for layer, wanted in zip(layers, expected[part], strict=True):
            assert isinstance(layer, getattr(nn, wanted["type"]))
            if isinstance(layer, nn.BatchNorm1d):
                found = dict(features=layer.num_features, affine=layer.affine, eps=layer.eps, momentum=layer.momentum)
                assert found | dict(type="BatchNorm1d", track_running_stats=True) == wanted


@pytest.mark.parametrize("side", [4, 5])
def test_position_tables(golden_encoders, side):
    """MoCo's own table encodes the row first; ours is MAE's for all encoders, as ARM's checkpoints hold it."""
    table = torch.tensor(np.load(golden_encoders / "sincos_tables.npz")[f"moco_{side}x{side}_64"])
    column, row = sincos_pos_embed(side, side, 64).flatten(1, 2).chunk(2, 2)
    torch.testing.assert_close(torch.cat([row, column], 2), table[:, 1:], atol=2e-7, rtol=0)
