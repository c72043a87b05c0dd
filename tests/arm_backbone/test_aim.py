"""AIM: what its attention sees, its files in the released layout, as a dense backbone and as a classifier."""

import pytest
import timm
import torch
from mmengine.registry import MODELS

from arm_backbone.aim import prefix_mask
from arm_backbone.checkpoint.errors import CheckpointError
from arm_backbone.timm_backbone import TimmBackbone, TimmClassifier
from tests.helpers.aim_names import to_official

NAME, SMALL = "aim_600m_patch14_224", dict(embed_dim=32, depth=4, num_heads=2)


def build(**arguments):
    torch.manual_seed(0)
    return timm.create_model(NAME, **dict(num_classes=10) | SMALL | arguments).double().eval()


def images(height: int = 28, width: int = 42) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def influence(model, token: int, **arguments) -> torch.Tensor:
    """Which patches (6,) of a 28 x 42 image have a gradient from the features of a token."""
    x = images().requires_grad_()
    model.forward_features(x, **arguments)[:, token].sum().backward()
    return x.grad.unfold(2, 14, 14).unfold(3, 14, 14).abs().amax((0, 1, 4, 5)).flatten() > 0


def test_causal_attention_sees_no_later_token():
    for token in range(6):
        assert influence(build(causal=True), token).tolist() == [i <= token for i in range(6)]
        assert influence(build(), token).all()


def test_prefix_lengths():
    model = build(causal=True)
    one = prefix_mask(torch.tensor([1, 1]), 6)
    torch.testing.assert_close(model(images(), one), model(images()), rtol=1e-12, atol=1e-14)
    assert influence(model, 0, attn_mask=prefix_mask(torch.tensor([4, 4]), 6)).tolist() == [True] * 4 + [False] * 2


def test_recomputed_blocks_are_causal_too():
    gradients = []
    for recompute in (False, True):
        model = build(causal=True)
        model.set_grad_checkpointing(recompute)
        model(images()).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_every_trained_parameter_has_a_gradient():
    """The last norm and the blocks after the last averaged one have no effect, so they are frozen."""
    model = build(probe_layers=(1, 2)).train()
    model(images()).square().sum().backward()
    without = {name.split(".norm")[0] for name, p in model.named_parameters() if p.grad is None}
    assert {name.split(".")[0] + name.split(".")[1] for name in without} == {"blocks3", "normweight", "normbias"}
    assert all(p.requires_grad == (p.grad is not None) for p in model.parameters())


def test_released_files_load_into_backbone_and_classifier(tmp_path):
    """The backbone's file, the head's, or both in one."""
    whole = build(num_classes=1000).float()
    state = to_official(whole.state_dict())
    torch.save(state, tmp_path / "both.pth")
    torch.save({k: v for k, v in state.items() if not k.startswith("head.")}, tmp_path / "backbone.pth")
    x = images(56, 56).float()
    for name in ("both", "backbone"):
        backbone = TimmBackbone(NAME, **SMALL).eval()
        assert "copied" in backbone.load(tmp_path / f"{name}.pth")
        assert all(torch.equal(p, whole.get_parameter(k)) for k, p in backbone.model.named_parameters())
        classifier = TimmClassifier(NAME, **SMALL).eval()
        report = classifier.load(tmp_path / f"{name}.pth")
        assert ("new" in report) == (name == "backbone")
        assert torch.equal(classifier(x), whole(x)) == (name == "both")


def test_a_head_replaced_by_none_frees_what_it_froze():
    model = build(probe_layers=(1, 2))
    model.reset_classifier(0, "")
    assert all(p.requires_grad for p in model.parameters()) and model(images()).shape == (2, 6, 32)
    model.reset_classifier(0, "avg")
    assert model(images()).shape == (2, 32)


def test_timm_loads_a_file_of_any_number_of_classes(tmp_path):
    trained = {name: tensor + 1 for name, tensor in build(num_classes=7).state_dict().items()}  # unlike a new model
    torch.save(to_official(trained), tmp_path / "seven.pth")

    def load(**arguments):
        return build(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / "seven.pth")), **arguments)

    seven, three = load(num_classes=7), load(num_classes=3)
    assert torch.equal(seven.head.linear.weight, trained["head.linear.weight"].float().double())
    assert torch.equal(three.head.k.weight, seven.head.k.weight) and three.head.linear.weight.shape == (3, 32)
    assert load(num_classes=7, in_chans=4).patch_embed.proj.weight.shape == (32, 4, 14, 14)


@pytest.mark.parametrize("keep", ["head.", "blocks.0", "nothing"])
def test_timm_refuses_a_file_that_does_not_fit(tmp_path, keep):
    state = {name: tensor for name, tensor in build().state_dict().items() if name.startswith(keep)}
    torch.save(state or {"other": torch.ones(1)}, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match="does not fit the model: .* tensors of the model are missing"):
        build(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / "part.pth")))


def test_a_head_without_its_last_layer_is_refused(tmp_path):
    torch.save({k: v for k, v in build().state_dict().items() if k != "head.linear.weight"}, tmp_path / "part.pth")
    with pytest.raises(
        CheckpointError, match="part.pth does not fit .* parts of a head without its last layer .head.cls"
    ):
        TimmClassifier(NAME, **SMALL).load(tmp_path / "part.pth")


def test_dense_maps_of_any_image():
    backbone = MODELS.build(dict(type="TimmBackbone", name=NAME, **SMALL))
    maps = backbone(torch.randn(2, 3, 30, 97))
    assert [tuple(x.shape) for x in maps] == [(2, 32, 3, 7)] * 4
    sum((x * torch.randn_like(x)).sum() for x in maps).backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert backbone.num_layers == 4 and backbone.layer_depth("model.blocks.2.norm1.weight") == 3
