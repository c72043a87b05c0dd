"""Programs of torch.export in which the operators are PyTorch's own, for any number of images and tokens."""

import pytest
import torch

from arm_backbone import ARM
from arm_backbone.ops import cross_conv, cross_scan, reference, scan_backend
from arm_backbone.scan_order import grid_orders
from tests.helpers.scans import assert_close

ANY = torch.export.Dim.DYNAMIC


class Operators(torch.nn.Module):
    """A convolution and a scan of maps (B, H, W, D), with a class token or without."""

    def __init__(self, scans: int, cls_token: str | None, dtype: torch.dtype, reduce: str) -> None:
        super().__init__()
        shapes = dict(weight=(scans, 6, 4), bias=(scans, 6), A=(scans, 6, 3), D=(scans, 6), delta_bias=(scans, 6))
        generator = torch.Generator().manual_seed(0)
        for name, shape in shapes.items():
            self.register_buffer(name, torch.randn(shape, generator=generator, dtype=dtype))
        self.A = -self.A.abs()
        self.scans, self.cls_token, self.reduce = scans, cls_token, reduce

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        orders = grid_orders(*maps.shape[1:3], self.scans, self.cls_token)
        x = maps.flatten(1, 2)
        if self.cls_token is not None:
            x = torch.cat([x, x[:, :1]], 1)
        u = cross_conv(x, self.weight, self.bias, orders)
        delta = u.flip(3)
        return cross_scan(u, delta, self.A, u[..., :3], u[..., 3:], self.D, self.delta_bias, orders, reduce=self.reduce)


@pytest.mark.parametrize(
    ("scans", "cls_token", "dtype", "reduce"),
    [(4, "middle", torch.float64, "mean"), (1, "tail", torch.float32, "sum")],
)
def test_program_computes_the_operators(scans, cls_token, dtype, reduce):
    module, maps = Operators(scans, cls_token, dtype, reduce), torch.randn(2, 3, 4, 6, dtype=dtype)
    with torch.no_grad(), scan_backend("reference"):
        program = torch.export.export(module, (maps,), dynamic_shapes=({0: ANY, 1: ANY, 2: ANY},))
    assert not [node for node in program.graph.nodes if str(node.target).startswith("arm.")]
    for size in ((2, 3, 4), (1, 5, 2), (3, 2, 9)):
        maps = torch.randn(*size, 6, dtype=dtype)
        with scan_backend("reference"):
            assert_close(program.module()(maps), module(maps), 1e-13 if dtype == torch.float64 else 1e-5)


def test_model_in_half_precision():
    module, maps = Operators(1, None, torch.bfloat16, "mean"), torch.randn(2, 3, 4, 6).bfloat16()
    with torch.no_grad(), scan_backend("reference"):
        program = torch.export.export(module, (maps,))
        assert_close(program.module()(maps).float(), module(maps).float(), 2e-2)


def test_a_program_of_our_operators_chooses_the_back_end_when_it_runs(monkeypatch):
    """So it runs where the machine that recorded it had other kernels."""
    model = ARM(dict(embed_dims=32, num_layers=1), 64, out_indices=(0,)).eval().requires_grad_(False)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), scan_backend("torch"):
        program = torch.export.export(model, (images,)).module()
    expected = model(images)[0]
    ran = []
    monkeypatch.setattr(reference, "scan", lambda *args, run=reference.scan: ran.append("reference") or run(*args))
    for backend in ("cpu", "torch", "reference"):
        with scan_backend(backend):
            assert_close(program(images)[0], expected, 1e-5)
    assert ran == ["reference"]
