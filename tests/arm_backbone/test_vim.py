"""Vim as a backbone, a classifier and a causal encoder. Against its public code: test_golden_vim.py."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS

from arm_backbone import Vim, VimClassifier
from arm_backbone.arm import find_trunk, trunk_class
from arm_backbone.checkpoint.official import parameter_names
from arm_backbone.drop_path import linear_rates
from arm_backbone.ops import layer_norm
from arm_backbone.optim import is_decayed
from arm_backbone.vim import ARCHS, VimTrunk


def images(height=64, width=96, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def small(cls=Vim, **arguments):
    torch.manual_seed(0)
    return cls(dict(embed_dims=32, num_layers=4), **dict(img_size=64) | arguments)


@pytest.mark.parametrize("size", [(64, 96), (50, 70), (16, 16), (15, 100), (128, 48)])
@pytest.mark.parametrize(("cls_token", "stride"), [("middle", 16), ("middle", 8), (None, 16)])
def test_maps_of_any_size(size, cls_token, stride):
    maps = small(cls_token=cls_token, patch_stride=stride)(images(*size))
    grid = tuple(-(-s // stride) for s in size)
    assert [tuple(m.shape) for m in maps] == [(2, 32, *grid)] * 4


def test_levels_and_names():
    with torch.device("meta"):
        assert [Vim(arch).out_indices for arch in ("tiny", "huge")] == [(7, 11, 15, 23), (15, 23, 31, 47)]
    assert isinstance(MODELS.build(dict(type="Vim", arch=dict(embed_dims=32, num_layers=4), img_size=64)), Vim)
    assert trunk_class("Vim") is VimTrunk and find_trunk(small())[0] == ""
    with pytest.raises(ValueError, match="encoder='vim' is unknown; give one of ARM, Vim"):
        trunk_class("vim")
    with pytest.raises(ValueError, match="scans=4: Vim scans in 1 direction .* or 2 .*; give 1 or 2"):
        small(scans=4)
    with pytest.raises(ValueError, match="arch='giant' is unknown; give one of " + ", ".join(ARCHS)):
        Vim("giant")


def test_maps_are_the_classifiers_tokens():
    classifier, backbone = small(VimClassifier).eval(), small(out_indices=(3,)).eval()
    backbone.load_state_dict(classifier.state_dict(), strict=False)
    x = images(64, 64)
    for output in classifier.block_outputs(*_embedded(classifier, x)):
        tokens = output
    tokens = torch.cat([tokens[:, :8], tokens[:, 9:]], 1)  # without the class token, in the middle
    expected = F.layer_norm(tokens, (32,), eps=1e-5).transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(backbone(x)[0], expected)


def _embedded(model, x):
    tokens, grid = model.embed(x)
    return tokens, model.orders(grid)


@pytest.mark.parametrize("cls", [Vim, VimClassifier])
def test_every_parameter_receives_a_gradient(cls):
    model = small(cls)
    result = model(images())
    maps = result if isinstance(result, tuple) else [result]
    sum((m * torch.randn_like(m)).sum() for m in maps).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_one_scan_is_causal_and_two_are_not():
    """The gradient of a token is zero in all later tokens with one scan, and nonzero in all others."""
    for scans in (1, 2):
        trunk = small(VimTrunk, scans=scans).double()
        x = trunk.embed(images(64, 64, 1).double())[0].detach().requires_grad_()
        outputs = list(trunk.block_outputs(x, trunk.orders((4, 4))))
        for token in (0, 7, 15):
            (grad,) = torch.autograd.grad(outputs[-1][0, token].sum(), x, retain_graph=True)
            influence = grad[0].abs().sum(1)
            assert (influence[: token + 1] > 0).all()
            assert (influence[token + 1 :] > 0).all() == (scans == 2 or token == 15)
            assert scans == 2 or not influence[token + 1 :].any()


def test_drop_path_rises_to_the_full_rate():
    assert linear_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    rates = [getattr(block.drop_path, "drop_prob", 0) for block in small(drop_path_rate=0.3).blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


def test_weight_decay_is_that_of_the_published_code():
    """timm's rule by their names and shapes: none for vectors, biases, position table and class token."""
    model = small(VimClassifier)
    found = 0
    for theirs, ours, direction in parameter_names(4, None, "Vim"):
        parameter = model.get_parameter(ours)
        their_ndim = parameter.ndim - (direction is not None) + ours.endswith("conv_weight")
        exempt = their_ndim <= 1 or theirs.endswith(".bias") or theirs in ("pos_embed", "cls_token")
        assert is_decayed(ours, parameter, "reference") != exempt, ours
        found += 1
    assert found == 17 * 4 + 6 and not is_decayed("cls_pos_embed", model.cls_pos_embed, "reference")


def test_initial_values_of_the_backward_direction():
    bias = small().blocks[0].mixer.dt_proj_bias
    assert not bias[1].any() and (F.softplus(bias[0]) < 0.11).all()  # as published
    bias = small(VimClassifier, reference_init=False).blocks[0].mixer.dt_proj_bias
    assert (F.softplus(bias) < 0.11).all()


@pytest.mark.parametrize("with_cp", ["selective", "full"])
def test_recomputed_and_plain_blocks_agree(with_cp):
    results = []
    for value in (False, with_cp):
        model = small(with_cp=value, drop_path_rate=0.5).train()
        torch.manual_seed(1)  # the same paths are dropped
        maps = model(images())
        sum(m.square().sum() for m in maps).backward()
        results.append([*maps, *(p.grad for p in model.parameters())])
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_tokens_between_blocks_stay_in_float32():
    """Also in a model of bfloat16 weights: rounding in every block would lose small updates of the residual."""
    model = small(VimClassifier, img_size=224).bfloat16().eval()
    dtypes = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, output: dtypes.extend([args[0].dtype, output.dtype]))
    half = model(images(224, 224).bfloat16())
    assert half.dtype == torch.bfloat16 and set(dtypes) == {torch.float32}
    expected = model.float()(images(224, 224))
    torch.testing.assert_close(half.float(), expected, atol=0.05 * expected.abs().max().item(), rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        dtypes.clear()
        mixed = model(images(224, 224))
    assert set(dtypes) == {torch.float32}
    torch.testing.assert_close(mixed.float(), expected, atol=0.05 * expected.abs().max().item(), rtol=0)


def test_a_linear_probe_trains_its_head_only():
    model = MODELS.build(
        dict(type="VimLinearProbe", arch=dict(embed_dims=32, num_layers=4), img_size=64, num_classes=3)
    )
    model.train()
    assert not model.blocks[0].training and model.head.training
    model(images(64, 64, 4), torch.tensor([0, 1, 2, 0]), mode="loss")["loss"].backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {"head.1.weight", "head.1.bias"}


def test_the_norm_runs_on_kernels_under_autocast():
    norm = small(VimClassifier).blocks[0].norm
    with torch.autocast("cpu", torch.bfloat16):
        normed = layer_norm(torch.randn(2, 5, 32), norm)
    assert normed.dtype == torch.bfloat16 and type(normed.grad_fn).__name__.startswith("_Norm")
