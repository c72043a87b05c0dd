"""Runs on an NVIDIA GPU: the Triton kernels, also at the sizes of ARM-B, and mamba-ssm's. Skipped without a GPU.

`python -m pytest tests/arm_backbone/ops/test_gpu.py` does not need OpenMMLab.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from arm_backbone.arm import ARM
from arm_backbone.block import Block
from arm_backbone.ops import cross_conv, cross_scan, silu_gate
from arm_backbone.ops.dispatch import unavailable
from arm_backbone.scan_order import scan_orders
from tests.helpers.scans import assert_close, cast, compare, gradients, scan_inputs

CUDA = torch.device("cuda")
pytestmark = pytest.mark.gpu


class Watch(TorchDispatchMode):
    """Records which operators are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func)
        return func(*args, **(kwargs or {}))


def on_gpu(inputs: dict) -> dict:
    return {n: v.detach().to(CUDA).requires_grad_(v.is_floating_point()) for n, v in inputs.items()}


def arm_inputs(batch: int, grid: tuple[int, int], scans: int = 4, dtype=torch.float32, dim: int = 768) -> dict:
    """Inputs distributed as in a fresh ARM-B."""
    generator = torch.Generator(CUDA).manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=CUDA)

    length = grid[0] * grid[1]
    inputs = {name: normal(batch, scans, length, dim).to(dtype) for name in ("u", "delta")}
    inputs |= {name: normal(batch, scans, length, 16).to(dtype) for name in ("B", "C")}
    inputs["A"] = -torch.arange(1.0, 17, device=CUDA).expand(scans, dim, 16).contiguous()
    inputs |= dict(D=torch.ones(scans, dim, device=CUDA), delta_bias=torch.full((scans, dim), -4.6, device=CUDA))
    inputs["orders"] = scan_orders(*grid, scans, device=CUDA)
    return {n: v.requires_grad_() if v.is_floating_point() else v for n, v in inputs.items()}


def compare_float32(result, inputs: list, expected, exact: list) -> None:
    """Compare a float32 result and its gradients with float64."""
    assert_close(result.double(), expected, 1e-6)
    grad = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, exact, grad)
    for got, want in zip(torch.autograd.grad(result, inputs, grad.float()), wanted, strict=True):
        assert_close(got.double(), want, 1e-5)


@pytest.mark.parametrize("programs", [1, 10**6], ids=["whole", "segments"])
@pytest.mark.parametrize(
    "sizes",
    [
        dict(grid=(1, 1)),
        dict(grid=(5, 13)),
        dict(grid=(3, 43), scans=1),
        dict(batch=1, grid=(2, 34), dim=33, state=5),
        dict(grid=(14, 14), dim=96, state=16),
        dict(grid=(9, 30), dim=129, state=17, batch=3),
    ],
)
def test_scan_equals_the_reference(sizes, programs, monkeypatch):
    scan_triton = pytest.importorskip("arm_backbone.ops.triton.scan")
    monkeypatch.setattr(scan_triton, "PROGRAMS", programs)
    monkeypatch.setattr(scan_triton, "FEWEST", 2)
    compare(on_gpu(scan_inputs(**sizes)), ("triton", torch.float32, 5e-6))


@pytest.mark.parametrize(
    ("batch", "grid", "dtype"),
    [
        (8, (14, 14), torch.float32),
        (8, (14, 14), torch.bfloat16),
        (8, (14, 14), torch.float16),
        (1, (17, 241), torch.float32),
        (1, (17, 241), torch.bfloat16),
        (2, (64, 64), torch.bfloat16),
        (1, (128, 128), torch.float32),
        (1, (128, 128), torch.bfloat16),
    ],
)
def test_scan_of_arm_b(batch, grid, dtype):
    """Compare result and gradients with plain PyTorch in float64 on the same rounded inputs."""
    inputs = arm_inputs(batch, grid, dtype=dtype)
    exact = cast(inputs, torch.float64)
    expected, result = (cross_scan(**x, backend=b) for x, b in ((exact, "torch"), (inputs, "triton")))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    assert_close(result.double(), expected, tolerance)
    wanted = gradients(expected, exact)
    for name, grad in gradients(result, inputs).items():
        assert grad.dtype == inputs[name].dtype and grad.shape == inputs[name].shape
        assert_close(grad.double(), wanted[name], 3 * tolerance)


def test_extreme_steps():
    inputs = on_gpu(scan_inputs(grid=(8, 9), dim=24, state=4))
    spread = torch.linspace(-40, 40, inputs["delta"].numel(), dtype=torch.float64, device=CUDA)
    inputs["delta"] = spread[torch.randperm(len(spread))].view_as(inputs["delta"]).requires_grad_()
    compare(inputs, ("triton", torch.float32, 5e-6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_are_bit_equal(dtype):
    inputs = arm_inputs(2, (32, 33), dtype=dtype)
    first, second = (gradients(cross_scan(**inputs, backend="triton"), inputs) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("batch", "grid"), [(3, (14, 14)), (1, (17, 241)), (2, (1, 2))])
def test_convolution(batch, grid):
    orders = scan_orders(*grid, device=CUDA)
    shapes = (batch, grid[0] * grid[1], 768), (4, 768, 4), (4, 768)
    exact = [torch.randn(shape, dtype=torch.float64, device=CUDA).requires_grad_() for shape in shapes]
    inputs = [x.detach().float().requires_grad_() for x in exact]
    expected, result = cross_conv(*exact, orders), cross_conv(*inputs, orders)
    compare_float32(result, inputs, expected, exact)


def test_gate():
    exact = [torch.randn(3, 197, 768, dtype=torch.float64, device=CUDA).requires_grad_() for _ in range(2)]
    inputs = [x.detach().float().requires_grad_() for x in exact]
    expected, result = exact[0] * torch.nn.functional.silu(exact[1]), silu_gate(*inputs)
    assert "Gate" in type(result.grad_fn).__name__
    compare_float32(result, inputs, expected, exact)


def test_mamba_ssm_does_the_same():
    reason = unavailable("mamba_ssm", CUDA, torch.float32)
    if reason:
        pytest.skip(reason)
    compare(on_gpu(scan_inputs(grid=(9, 11), dim=24, state=16)), ("mamba_ssm", torch.float32, 5e-6))


def test_a_model_on_the_gpu_equals_one_on_the_cpu():
    torch.manual_seed(0)
    model = ARM(arch="small", img_size=64).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = model(images)
        results = model.to(CUDA)(images.to(CUDA))
    for result, wanted in zip(results, expected, strict=True):
        assert_close(result.cpu(), wanted, 1e-3)  # PyTorch's own matmuls may use TF32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_block_equals_its_operators(dtype):
    """Compare the fused autograd functions with the separate operators, which the block calls under a dispatch mode."""
    torch.manual_seed(0)
    block, orders = Block(768, scans=4, drop_path=0.0, num_blocks=12).to(CUDA), scan_orders(9, 23, device=CUDA)
    inputs = [torch.randn(2, 207, 768, device=CUDA, requires_grad=True), *block.parameters()]
    grad = torch.randn_like(inputs[0])

    def run() -> list[torch.Tensor]:
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype != torch.float32):
            y = block(inputs[0], orders)
        first, second = (torch.autograd.grad(y, inputs, grad, retain_graph=True) for _ in range(2))
        assert all(map(torch.equal, first, second))  # the backward overwrites nothing that a second one needs
        return [y, *first]

    fused = run()
    with Watch() as watch:
        operators = run()
    assert {torch.ops.arm.cross_scan.default, torch.ops.arm.cross_scan_backward.default} <= watch.seen
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for got, want in zip(fused, operators, strict=True):
        assert_close(got, want, tolerance)


def test_checkpoints_change_no_gradient():
    torch.manual_seed(0)
    model, images = ARM(arch="small", img_size=64).to(CUDA), torch.randn(2, 3, 64, 96, device=CUDA)
    found = []
    for with_cp in (False, "selective", "full"):
        model.with_cp = with_cp
        with torch.autocast("cuda", torch.bfloat16):
            loss = sum(x.float().square().mean() for x in model(images))
        loss.backward()
        found.append([parameter.grad for parameter in model.parameters()])
        model.zero_grad()
    for other in found[1:]:
        for got, want in zip(other, found[0], strict=True):
            assert (got is None) == (want is None)
            assert want is None or torch.equal(got, want)


def test_block_compiles_without_a_graph_break():
    block, orders = Block(64, scans=4, drop_path=0.0, num_blocks=12).to(CUDA), scan_orders(5, 9, device=CUDA)
    x = torch.randn(3, 45, 64, device=CUDA, requires_grad=True)
    compiled = torch.compile(block, fullgraph=True)
    with torch.autocast("cuda", torch.bfloat16):
        expected, result = block(x, orders), compiled(x, orders)
    assert_close(result, expected, 2e-2)
    wanted = torch.autograd.grad(expected.sum(), [x, *block.parameters()])
    for got, want in zip(torch.autograd.grad(result.sum(), [x, *block.parameters()]), wanted, strict=True):
        assert_close(got, want, 5e-2)
