"""What tools/benchmark.py times of the scan and the block: ours, the usual alternatives, the bare matrix products.

Legend: B batch, K scan directions, L tokens, D channels, N state size, R rank of delta.
"""

import copy
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from arm_backbone.arm import resolve_arch, run_checkpointed
from arm_backbone.block import Block
from arm_backbone.ops.cpu import library as native
from arm_backbone.ops.dispatch import BACKENDS, resolve_backend, unavailable
from arm_backbone.ops.scan import cross_scan
from arm_backbone.scan_order import scan_orders

from .alternatives import (
    conv_silu,
    four_calls,
    parallel_scan,
    selective_scan_loop,
    unbind_scan,
    usual_mixer,
    usual_swiglu,
)
from .timing import Candidate, Case, Setting, captured, memory, resolved, with_backend

SCANS = (*BACKENDS, "loop", "unbind", "pscan", "four calls", "exp")
KERNELS = ("triton", "mamba_ssm", "four calls")  # few enough launches for a CUDA graph
STATE = 16
LOOP_TOKENS = 256  # forward and backward of a loop that indexes: each step fills a whole tensor with zeros
# (forward, forward and backward): tensors of (B, K, L, D, N) that a scan holds at its peak, measured
STATE_TENSORS = {"loop": (3, 7), "unbind": (3, 6), "pscan": (5, 8)}


@dataclass(frozen=True)
class Grid:
    """Tokens of an image, perhaps with a class token in the middle."""

    height: int
    width: int
    cls_token: bool = False

    @property
    def tokens(self) -> int:
        return self.height * self.width + self.cls_token

    def orders(self, scans: int, device: torch.device) -> Tensor:
        return scan_orders(self.height, self.width, scans, "middle" if self.cls_token else None, device)

    def __str__(self) -> str:
        return f"{self.height} x {self.width}{' + 1' if self.cls_token else ''} = {self.tokens} tokens"


# The scan


def scan_inputs(setting: Setting, grid: Grid, scans: int, channels: int) -> dict[str, Tensor]:
    """Arguments of `cross_scan`, distributed as in a fresh model, and lying direction by direction as in the mixer."""
    B, K, L, D, N = setting.batch, scans, grid.tokens, channels, STATE
    tokens = dict(u=D, delta=D, B=N, C=N)
    inputs = {name: setting.randn(K, B, L, C).to(setting.dtype).transpose(0, 1) for name, C in tokens.items()}
    inputs["A"] = -torch.arange(1.0, N + 1, device=setting.device).expand(K, D, N).contiguous()
    inputs["D"] = torch.ones(K, D, device=setting.device)
    inputs["delta_bias"] = torch.full((K, D), -4.6, device=setting.device)  # steps around 0.01
    inputs["orders"] = grid.orders(scans, setting.device)
    return inputs


def scan_cases(
    setting: Setting,
    grids: list[Grid],
    scans: int = 4,
    channels: int = 768,
    backward: bool = False,
    only: list[str] | None = None,
) -> Iterator[Case]:
    """Every back end that can run, and the alternatives; forward, and with `backward` both together.

    On a GPU those of a few kernels are timed as CUDA graphs, too.

    Args:
        only: of `SCANS`; all when None.
    """
    functions, notes = _scan_functions(setting, only or SCANS)
    for grid in grids:
        inputs = scan_inputs(setting, grid, scans, channels)
        states = setting.batch * scans * grid.tokens * channels * STATE
        for with_backward in (False, True) if backward else (False,):
            case = Case("forward and backward" if with_backward else "forward", grid.tokens, "tokens", "", [])
            case.title = f"batch {setting.batch}, {grid}, {channels} channels, scans: {scans}, {setting.type_name}"
            case.tensor = "(B, L, D) float32", setting.batch * grid.tokens * channels * 4
            case.notes, notes = notes, []  # said once
            for name, function in functions.items():
                reason = _too_large(name, states, grid.tokens, with_backward, setting.device)
                if reason:
                    case.notes.append(f"{name}: {reason}")
                    continue
                suited = _tokens_last(inputs) if name in ("loop", "four calls") else inputs
                run = _scan_run(function, suited, with_backward)
                work = 1 if with_backward else states / 1e9
                if name in KERNELS:
                    case.candidates += _launched_and_captured(name, run, setting, work)
                else:
                    case.candidates.append(Candidate(name, run, work))
            if not with_backward:
                case.unit = "Gexp/s"
                if "exp" in (only or SCANS) and setting.device.type == "cpu":
                    case.candidates += _exponentials()
            yield case


def _launched_and_captured(
    name: str, run: Callable[[], object], setting: Setting, work: float = 1.0
) -> list[Candidate]:
    """A run, and on a GPU its kernels alone ("graph"): small batches wait for the processor that launches them."""
    candidates = [Candidate(name, run, work)]
    if setting.device.type == "cuda":
        candidates.append(Candidate(f"{name}, graph", captured(run), work, memory=False))
    return candidates


def _scan_functions(setting: Setting, names: list[str]) -> tuple[dict[str, Callable], list[str]]:
    """Name -> scan, our fastest first; and notes on those that cannot run."""
    functions, notes = {}, []
    fastest = resolve_backend(setting.device, setting.dtype)
    for name in sorted(set(names) & set(BACKENDS), key=(fastest, *BACKENDS).index):
        reason = unavailable(name, setting.device, setting.dtype)
        if reason is None:
            functions[name] = functools.partial(cross_scan, backend=name)
        else:
            notes.append(f"{name}: {reason}")
    if "loop" in names:
        functions["loop"] = functools.partial(four_calls, selective_scan_fn=selective_scan_loop)
    if "unbind" in names:
        functions["unbind"] = unbind_scan
    if "pscan" in names:
        try:
            from mambapy.pscan import pscan
        except ImportError:
            notes.append("pscan: mambapy is not installed (pip install --no-deps mambapy)")
        else:
            functions["pscan"] = functools.partial(parallel_scan, pscan=pscan)
    if "four calls" in names and setting.device.type == "cuda":
        try:
            from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
        except ImportError as error:
            notes.append(f"four calls: mamba-ssm cannot be imported ({error})")
        else:
            functions["four calls"] = functools.partial(four_calls, selective_scan_fn=selective_scan_fn)
    return functions, notes


def _too_large(name: str, states: int, tokens: int, backward: bool, device: torch.device) -> str | None:
    if name in ("reference", "loop") and backward and tokens > LOOP_TOKENS:
        return f"its backward takes quadratic time, and these are more than {LOOP_TOKENS} tokens"
    needed = STATE_TENSORS.get(name, (0, 0))[backward] * 4 * states
    if needed > memory(device) / 2:
        return f"it would take {needed / 1e9:.0f} GB, more than half of the memory"
    return None


def _scan_run(function: Callable, inputs: dict[str, Tensor], backward: bool) -> Callable[[], object]:
    if not backward:
        return torch.no_grad()(functools.partial(function, **inputs))
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items() if x.is_floating_point()}
    with torch.no_grad():
        grad = torch.randn_like(function(**inputs))
    return lambda: torch.autograd.grad(function(**leaves, orders=inputs["orders"]), list(leaves.values()), grad)


def _tokens_last(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The arguments of `cross_scan` as `four_calls` takes them."""
    directions = torch.arange(len(inputs["orders"]), device=inputs["orders"].device).unsqueeze(1)
    moved = {name: inputs[name][:, directions, inputs["orders"]] for name in ("delta", "B", "C")} | {"u": inputs["u"]}
    return inputs | {name: x.transpose(2, 3).contiguous() for name, x in moved.items()}


def _exponentials() -> list[Candidate]:
    """Nothing but exponentials: torch.exp in the second-level caches, and the kernels' own in registers."""
    cache = os.sysconf("SC_LEVEL2_CACHE_SIZE") if "SC_LEVEL2_CACHE_SIZE" in os.sysconf_names else 0
    numbers = -torch.rand(torch.get_num_threads() * (cache if cache > 0 else 2**20) // 8)
    run = functools.partial(torch.exp, numbers, out=numbers.clone())
    candidates = [Candidate("torch.exp", run, len(numbers) / 1e9, scales=False)]
    if native.unavailable() is None:
        repeats = 2**17
        bare = functools.partial(native.bare_exponentials, repeats)
        candidates.append(Candidate("bare exp", bare, bare() / 1e9, scales=False))
    return candidates


# The block


def matrix_products(block: Block, setting: Setting, tokens: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs (., rows, I), in `dtype`, and weights (., I, O) of the block's seven products, each one `torch.matmul`."""
    mixer, mlp, rows = block.mixer, block.mlp, setting.batch * tokens
    linears = [layer.weight for layer in (mixer.in_proj, mixer.out_proj, mlp.w1, mlp.w2, mlp.w3)]
    weights = [weight.detach().mT for weight in (mixer.x_proj_weight, mixer.dt_proj_weight, *linears)]
    return [(setting.randn(*w.shape[:-2], rows, w.shape[-2]).to(setting.dtype), w) for w in weights]


def block_cases(
    setting: Setting, grids: list[Grid], arch: str = "base", backward: bool = False, backends: list[str] = ("auto",)
) -> Iterator[Case]:
    """A block of ARM on several back ends, against its matrix products alone.

    Under autocast these are timed twice: with weights of its type, and with the casts that autocast cannot do without.
    The forward of the block, too: under autocast, and of that type throughout ("weights held"). The backward, too: with
    what a forward leaves, and with more computed again ("with_cp"). On a GPU ours and the usual arrangement, too, as
    CUDA graphs ("graph").
    """
    dim, num_layers = resolve_arch(arch)
    block = Block(dim, scans=4, drop_path=0.0, num_blocks=num_layers).to(setting.device)
    held = copy.deepcopy(block).to(setting.dtype)
    for grid in grids:
        x = setting.randn(setting.batch, grid.tokens, dim)
        orders = grid.orders(4, setting.device)
        products = matrix_products(block, setting, grid.tokens)
        for with_backward in (False, True) if backward else (False,):
            case = Case("forward and backward" if with_backward else "forward", grid.tokens, "tokens", "", [])
            case.title = f"ARM-{arch} block, batch {setting.batch}, {grid}, {setting.type_name}"
            case.tensor = "(B, L, D) float32", x.numel() * 4
            plain = [(inputs, weight.to(setting.dtype)) for inputs, weight in products]
            case.candidates.append(Candidate("GEMMs", _products_run(plain, setting, with_backward)))
            if setting.dtype != torch.float32:
                run = _products_run(products, setting, with_backward)
                case.candidates.append(Candidate("GEMMs, weights cast", run))
            for backend in resolved(setting, backends):
                run = with_backend(backend, _module_run(block, x, orders, setting, with_backward))
                case.candidates += _launched_and_captured(f"block, {backend}", run, setting)
                if with_backward:
                    # a block with kernels already does nearly what "selective" does
                    with_cp = "full" if backend in ("triton", "cpu") else "selective"
                    run = _module_run(block, x, orders, setting, with_backward, with_cp)
                    name = f"block, {backend}, with_cp={with_cp!r}"
                    case.candidates.append(Candidate(name, with_backend(backend, run)))
                if setting.dtype != torch.float32 and not with_backward:  # without autocast
                    run = _module_run(held, x.to(setting.dtype), orders, replace(setting, dtype=torch.float32), False)
                    case.candidates.append(Candidate(f"block, {backend}, weights held", with_backend(backend, run)))
            if setting.device.type == "cuda":
                try:
                    usual = _usual_block(block)
                except ImportError as error:
                    case.notes.append(f"the usual arrangement: mamba-ssm cannot be imported ({error})")
                else:
                    run = _module_run(usual, x, orders, setting, with_backward)
                    case.candidates += _launched_and_captured("block, four mamba-ssm calls", run, setting)
            yield case


def _usual_block(block: Block) -> Block:
    """The same block with `usual_mixer` on mamba-ssm and `usual_swiglu`, or an ImportError."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    try:
        from causal_conv1d import causal_conv1d_fn
    except ImportError:
        conv_fn = conv_silu
    else:
        conv_fn = functools.partial(causal_conv1d_fn, activation="silu")
    usual = copy.deepcopy(block)
    kernels = dict(selective_scan_fn=selective_scan_fn, conv_fn=conv_fn)
    usual.mixer.forward = functools.partial(usual_mixer, usual.mixer, **kernels)
    usual.mlp.forward = functools.partial(usual_swiglu, usual.mlp)
    return usual


def _products_run(products: list[tuple[Tensor, Tensor]], setting: Setting, backward: bool) -> Callable[[], object]:
    leaves = [tuple(tensor.detach().requires_grad_() for tensor in pair) for pair in products]
    grads = [torch.randn(*x.shape[:-1], w.shape[-1], dtype=x.dtype, device=x.device) for x, w in leaves]

    def run() -> object:
        with setting.autocast(), torch.set_grad_enabled(backward):
            outputs = [torch.matmul(x, w) for x, w in leaves]
        return torch.autograd.grad(outputs, sum(leaves, ()), grads) if backward else outputs

    return run


def _module_run(
    block: Block, x: Tensor, orders: Tensor, setting: Setting, backward: bool, with_cp: bool | str = False
) -> Callable[[], object]:
    leaves, grad = [x.detach().requires_grad_(), *block.parameters()], torch.randn_like(x)

    def run() -> object:
        with setting.autocast(), torch.set_grad_enabled(backward):
            y = run_checkpointed(block, leaves[0], orders, with_cp)
        return torch.autograd.grad(y, leaves, grad) if backward else y

    return run
