"""GPU back ends tested without a GPU: interpreted and compiled Triton kernels, and the call of mamba-ssm."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from arm_backbone.ops import cross_scan, selective_scan
from arm_backbone.ops.mamba_ssm import scan as mamba_ssm_scan
from arm_backbone.ops.scan_inputs import ScanInputs
from tests.helpers.paths import ROOT
from tests.helpers.scans import cast, compare, scan_inputs

triton = pytest.importorskip("triton")


@pytest.mark.parametrize("part", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_kernels_in_the_interpreter(part):
    """They run in a separate process, because Triton decides on import whether to interpret."""
    file = Path(__file__).with_name("triton_interpreted.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", part, str(file)]
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-4000:]


SIZES = dict(N=16, PACK=4, TYPE=triton.language.bfloat16, CHUNK=64, GROUP=4)
FLAGS = dict(SHARED_U=False, SOFTPLUS=True, HAS_D=True, HAS_BIAS=True, TAPS=4, STRETCH=64, AHEAD=4, CHANNELS=128)
LOW = (
    *("z", "grad_z", "y", "grad_u", "grad_delta", "grad_B", "grad_C", "x", "out", "grad", "grad_x"),
    *("branch", "grad_branch"),
)
WORDS = ("B", "C", "orders")
PAIRS = ("u", "delta", "grad_y")
INTEGERS = (
    *("directions", "images", "length", "channels", "pairs", "rows", "segment_length", "segments", "done", "divisor"),
    *("step_B", "step_C", "row_x", "row_z", "row_grad", "row_total", "row_branch", "row_out"),
    *("row_grad_x", "row_grad_z", "count", "width", "blocks", "used"),
)
GATE = dict(ROWS=8, COLUMNS=256)
NORM = dict(CENTERED=True, HAS_BIAS=True, WIDTH=1024, HAS_BRANCH=True, HAS_TOTAL=True)
WHOLE = dict(HAS_STARTS=False, starts=None, local=None, sums=None, ONLY_STATE=False, KEEP=True, LAST=True)


@pytest.mark.parametrize("capability", [90, pytest.param(80, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("module", "kernel", "constants"),
    [
        ("scan_forward", "_forward", WHOLE),
        (
            "scan_forward",
            "_forward",
            dict(HAS_STARTS=True, ONLY_STATE=False, KEEP=False, LAST=False, local=None, sums=None),
        ),
        ("scan_forward", "_forward", dict(HAS_STARTS=False, ONLY_STATE=True, KEEP=False, LAST=False, starts=None)),
        ("scan_forward", "_combine", dict(REVERSE=True)),
        ("scan_backward", "_reverse", {}),
        ("scan_backward", "_backward", dict(HAS_CARRIED=True)),
        ("scan_backward", "_sum_blocks", dict(WIDTH=16, TOKENS=16)),
        ("conv", "_forward", {}),
        ("conv", "_backward", {}),
        ("gate", "_forward", GATE),
        ("gate", "_backward", GATE),
        ("norm", "_forward", NORM),
        ("norm", "_backward", NORM),
    ],
)
def test_kernels_compile_ahead_of_time(module, kernel, constants, capability):
    """Kernels for bfloat16 tensors compile for an A100 and an H100 without having one."""
    from importlib import import_module

    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(import_module(f"arm_backbone.ops.triton.{module}"), kernel)
    constants = SIZES | FLAGS | constants
    signature, values = {}, {}
    for parameter in function.params:
        name = parameter.name
        if parameter.is_constexpr or constants.get(name, 0) is None:
            signature[name], values[name] = "constexpr", constants[name]
        elif name in INTEGERS:
            signature[name] = "i32"
        elif name == "eps":
            signature[name] = "fp32"
        else:
            signature[name] = (
                "*i64" if name in WORDS else "*i32" if name in PAIRS else "*bf16" if name in LOW else "*fp32"
            )
    source = ASTSource(function, signature, values)
    options = dict(num_warps=4 if module == "norm" else 1)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert compiled.asm["cubin"][:4] == b"\x7fELF" and f"sm_{capability}" in compiled.asm["ptx"]
    if module.startswith(("scan", "gate")):  # the threads exchange no data
        assert compiled.metadata.shared == 0


class NoGpu:
    """Stands in for the driver of an H100: the methods that Triton calls before a launch."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def test_one_kernel_serves_all_lengths(monkeypatch):
    """Compiling takes seconds; images of another size must not trigger it again."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from arm_backbone.ops.triton import scan as scan_triton
    from arm_backbone.ops.triton.conv import conv_forward

    compiled, launch = set(), JITFunction.run
    monkeypatch.setattr(
        JITFunction,
        "run",
        lambda self, *args, **kwargs: compiled.add(id(launch(self, *args, **kwargs | {"warmup": True}))),
    )
    counts = []
    monkeypatch.setattr(driver, "_active", NoGpu())
    monkeypatch.setattr(scan_triton, "PROGRAMS", 1)  # whole sequences
    for batch, length in ((2, 197), (1, 256), (16, 5), (1, 1)):
        inputs = [torch.zeros(batch, 4, length, size) for size in (64, 64, 4, 4)]
        orders, A = torch.arange(length).expand(4, -1), torch.zeros(4, 64, 4)
        given = ScanInputs(*inputs[:2], A, *inputs[2:], None, None, orders)
        scan_triton.scan_forward(given, True, "mean", keep=True, last=True)
        conv_forward(inputs[0][:, 0], torch.zeros(4, 64, 4), torch.zeros(4, 64), orders)
        counts.append(len(compiled))
    assert counts[0] >= 2 and counts[1:] == counts[:1] * 3


@pytest.mark.parametrize(
    ("programs", "forward", "backward"),
    [(7, [1], [1]), (8, [1], [1, 2]), (12, [1], [1, 2]), (16, [3, 4], [3, 4])],
)
def test_how_a_sequence_is_cut(programs, forward, backward, monkeypatch):
    """Segments in each pass over 193 tokens, which are 4 chunks, in 4 directions, for the programs that are aimed at.

    The first pass leaves out a segment that no other follows; the forward cuts into more than two or not at all.
    """
    from arm_backbone.ops.triton import scan as scan_triton

    passes = []

    def run(self, kernel, grid, *arguments, **constants) -> None:
        if kernel in (scan_triton._forward, scan_triton._reverse):
            passes.append(grid[2])
        elif kernel is scan_triton._backward:
            passes.append(self.segments)

    monkeypatch.setattr(scan_triton, "PROGRAMS", programs)
    monkeypatch.setattr(scan_triton, "_programs_at_once", lambda device: programs * 4)  # one launch
    monkeypatch.setattr(scan_triton._Packed, "run", run)
    given = ScanInputs(**cast(scan_inputs(batch=1, grid=(1, 193), dim=2, state=2), torch.float32))
    y, states = scan_triton.scan_forward(given, True, "mean", keep=True, last=False)
    assert passes == forward
    passes.clear()
    scan_triton.scan_backward(torch.zeros_like(y), given, True, "mean", states, in_place=False)
    assert passes == backward


def test_triton_needs_a_gpu():
    with pytest.raises(
        ValueError, match="backend='triton' cannot run: it scans tensors on a GPU, but these are on cpu"
    ):
        cross_scan(**cast(scan_inputs(), torch.float32), backend="triton")


@pytest.mark.parametrize(("version", "reason"), [("3.2.0", "triton is older than 3.3"), ("3.10.1+git", None)])
def test_triton_too_old(version, reason, monkeypatch):
    from arm_backbone.ops import dispatch

    monkeypatch.setattr(triton, "__version__", version)
    dispatch._triton_version.cache_clear()
    try:
        said = dispatch.unavailable("triton", torch.device("cuda"), torch.float32)
    finally:
        dispatch._triton_version.cache_clear()
    assert (said is None) == (reason is None) and (reason or "") in (said or "")


def test_mamba_ssm_is_called_as_it_expects(monkeypatch):
    """Our own scan stands in for its public function and checks layout, order of arguments and groups."""
    calls = []

    def selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state):
        assert u.is_contiguous() and delta.is_contiguous() and A.dtype == torch.float32 and z is None
        batch, groups, states, length = B.shape
        calls.append(groups)
        each = u.shape[1] // groups
        parts = [
            selective_scan(
                *(x[:, g * each : (g + 1) * each] for x in (u, delta)),
                A[g * each : (g + 1) * each],
                B[:, g],
                C[:, g],
                None if D is None else D[g * each : (g + 1) * each],
                None,
                None if delta_bias is None else delta_bias[g * each : (g + 1) * each],
                delta_softplus,
                True,
            )
            for g in range(groups)
        ]
        return torch.cat([y for y, _ in parts], 1), torch.cat([state for _, state in parts], 1)

    package = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    package.selective_scan_fn = selective_scan_fn
    monkeypatch.setitem(sys.modules, "mamba_ssm", types.ModuleType("mamba_ssm"))
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops", types.ModuleType("mamba_ssm.ops"))
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", package)
    inputs = cast(scan_inputs(), torch.float32)
    expected = cross_scan(**inputs)
    y, last_state = mamba_ssm_scan(ScanInputs(**inputs), True, "mean")
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    assert last_state.shape == (2, 4, 6, 3) and calls == [4]
    monkeypatch.setattr("arm_backbone.ops.dispatch.unavailable", lambda *_: None)
    compare(scan_inputs(), ("mamba_ssm", torch.float32, 1e-5))
