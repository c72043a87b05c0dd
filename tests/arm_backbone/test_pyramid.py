"""ViTDet's simple pyramid: levels of one map, as its paper describes them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from arm_backbone.pyramid import ARMSimpleFPN, Doubling


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 7)])
def test_levels_of_any_grid(height, width):
    levels = ARMSimpleFPN(32, 16)((torch.randn(2, 32, height, width),))
    half = (-(-height // 2), -(-width // 2))
    sizes = [(4 * height, 4 * width), (2 * height, 2 * width), (height, width), half]
    sizes.append(tuple(-(-size // 2) for size in half))
    assert [tuple(x.shape) for x in levels] == [(2, 16, *size) for size in sizes]
    assert torch.equal(levels[4], levels[3][:, :, ::2, ::2])


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_doubling_is_a_deconvolution(memory_format):
    layer, x = Doubling(6, 10).double(), torch.randn(2, 6, 3, 5, dtype=torch.float64)
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    y, expected = layer(x), F.conv_transpose2d(x, layer.weight, layer.bias, stride=2)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    assert y.is_contiguous(memory_format=torch.channels_last)
    leaves, grad = (x, layer.weight, layer.bias), torch.randn_like(expected)
    for found, wanted in zip(torch.autograd.grad(y, leaves, grad), torch.autograd.grad(expected, leaves, grad)):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_every_parameter_has_a_gradient():
    pyramid = ARMSimpleFPN(32, 16)
    sum((x * torch.randn_like(x)).sum() for x in pyramid((torch.randn(2, 32, 4, 6),))).backward()
    assert [name for name, p in pyramid.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_layers_one_by_one():
    """The finest and the coarsest level, written out in torch's functions."""

    def norm(x, layer):
        mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
        return (x - mean) / (variance + 1e-6).sqrt() * layer.weight[:, None, None] + layer.bias[:, None, None]

    pyramid, x = ARMSimpleFPN(32, 16).double(), torch.randn(2, 32, 4, 6, dtype=torch.float64)
    for parameter in pyramid.parameters():
        nn.init.normal_(parameter, std=0.3)
    levels = pyramid((x,))
    up1, norm1, _, up2, *lateral = pyramid.levels[0]
    fine = F.conv_transpose2d(x, up1.weight, up1.bias, 2)
    fine = F.conv_transpose2d(F.gelu(norm(fine, norm1)), up2.weight, up2.bias, 2)
    for result, level, (conv1, norm1, conv3, norm3) in (
        (levels[0], fine, lateral),
        (levels[3], F.max_pool2d(x, 2), list(pyramid.levels[3])[1:]),
    ):
        level = norm(F.conv2d(level, conv1.weight), norm1)
        level = norm(F.conv2d(level, conv3.weight, padding=1), norm3)
        torch.testing.assert_close(result, level, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(dict(in_channels=30), "in_channels=30: give a multiple of 4"), (dict(in_channels=32, num_outs=3), "num_outs=3")],
)
def test_arguments_out_of_range(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        ARMSimpleFPN(**arguments)


def test_several_maps_are_refused():
    with pytest.raises(ValueError, match="needs the last map alone, not 4; set the backbone's out_indices"):
        ARMSimpleFPN(32)((torch.zeros(1, 32, 2, 2),) * 4)
