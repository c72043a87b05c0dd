"""Cases of `tools/benchmark.py scan`: every scan back end, and the alternatives to it.

Legend: B batch, K scan directions, L tokens, D channels, N state size.
"""

import functools
import os
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from arm_backbone.ops import ScanOrders, selective_scan
from arm_backbone.ops.cpu import library as native
from arm_backbone.ops.dispatch import BACKENDS, resolve_backend, unavailable
from arm_backbone.ops.scan import cross_scan

from ..machine import total_memory
from . import other_kernels
from .alternatives import chunked_scan, four_calls, one_call, parallel_scan, selective_scan_loop, unbind_scan
from .case import Candidate, Case, Grid, Setting, launched_and_captured

TOKENS_LAST = ("tokens last", "loop", "four calls", "one call")  # candidates that read (B, D, L), as mamba-ssm does
FORWARD_ONLY = {"onnxruntime": other_kernels.onnxruntime_scan, "ggml": other_kernels.ggml_scan}  # in float32
SCANS = (*BACKENDS, *TOKENS_LAST, "unbind", "pscan", "chunked", *FORWARD_ONLY, "exp")
KERNELS = ("triton", "mamba_ssm", "four calls", "one call")  # few enough launches for a CUDA graph
STATE = 16
LOOP_TOKENS = 256  # limit for the backward of indexing loops, which fills a whole tensor per step
# Tensors of (B, K, L, D, N) held at the peak of (forward, forward and backward), measured
STATE_TENSORS = {"loop": (3, 7), "unbind": (3, 6), "pscan": (5, 8), "chunked": (1, 6), "onnxruntime": (2, 2)}
# Largest difference from our result, as a share of its largest value, for work that counts as the same
SAME = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 3e-3}


def scan_inputs(setting: Setting, grid: Grid, scans: int, channels: int) -> dict[str, Tensor]:
    """Arguments of `cross_scan`, distributed as in a new model, with each direction contiguous as in the mixer."""
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
    """For each grid the forward, and with `backward` also forward and backward together.

    The candidates are all back ends that can run, and the alternatives, if their results are those of the first. On a
    GPU, those with few kernel launches are also timed as CUDA graphs.

    Args:
        only: names in `SCANS`; None for all.
    """
    functions, notes = _scan_functions(setting, only or SCANS)
    for grid in grids:
        inputs = scan_inputs(setting, grid, scans, channels)
        suited = {name: tokens_last(inputs) if name in TOKENS_LAST else inputs for name in functions}
        expected, different = None, {}
        states = setting.batch * scans * grid.tokens * channels * STATE
        for with_backward in (False, True) if backward else (False,):
            case = Case("forward and backward" if with_backward else "forward", grid.tokens, "tokens", "", [])
            case.title = f"batch {setting.batch}, {grid}, {channels} channels, scans: {scans}, {setting.type_name}"
            case.tensor = "(B, L, D) float32", setting.batch * grid.tokens * channels * 4
            case.notes, notes = notes, []  # shown with the first case only
            for name, function in functions.items():
                if with_backward and name in {*FORWARD_ONLY, *different}:
                    continue
                reason = _too_large(name, states, grid.tokens, with_backward, setting.device)
                if reason is None and not with_backward:
                    with torch.no_grad():
                        y = function(**suited[name]).float()
                    y = y.transpose(1, 2) if name in TOKENS_LAST else y
                    expected = y if expected is None else expected
                    reason = different_work(y, expected, SAME[setting.dtype])
                    different |= {name: reason} if reason else {}
                if reason:
                    case.notes.append(f"{name}: {reason}")
                    continue
                run = scan_run(function, suited[name], with_backward)
                work = 1 if with_backward else states / 1e9
                if name in KERNELS:
                    case.candidates += launched_and_captured(name, run, setting, work)
                else:
                    case.candidates.append(Candidate(name, run, work))
            if not with_backward:
                case.unit = "Gexp/s"
                if "exp" in (only or SCANS) and setting.device.type == "cpu":
                    case.candidates += _exponentials()
            yield case


def trusted_scan(*, orders: Tensor, backend: str, **inputs: Tensor) -> Tensor:
    """`cross_scan` with trusted orders, as a model calls it."""
    return cross_scan(**inputs, orders=ScanOrders.trusted(orders), backend=backend)


def _scan_functions(setting: Setting, names: list[str]) -> tuple[dict[str, Callable], list[str]]:
    """Name -> scan function, our fastest first; and notes on those that cannot run."""
    functions, notes = {}, []
    fastest = resolve_backend(setting.device, setting.dtype)
    for name in sorted(set(names) & set(BACKENDS), key=(fastest, *BACKENDS).index):
        reason = unavailable(name, setting.device, setting.dtype)
        if reason is None:
            functions[name] = functools.partial(trusted_scan, backend=name)
        else:
            notes.append(f"{name}: {reason}")
    if "tokens last" in names:
        functions["tokens last"] = functools.partial(four_calls, selective_scan_fn=selective_scan)
    if "loop" in names:
        functions["loop"] = functools.partial(four_calls, selective_scan_fn=selective_scan_loop)
    if "unbind" in names:
        functions["unbind"] = unbind_scan
    if "chunked" in names:
        functions["chunked"] = chunked_scan
    if "pscan" in names:
        try:
            from mambapy.pscan import pscan
        except ImportError:
            notes.append("pscan: mambapy is not installed (pip install --no-deps mambapy)")
        else:
            functions["pscan"] = functools.partial(parallel_scan, pscan=pscan)
    for name in [name for name in FORWARD_ONLY if name in names and setting.device.type == "cpu"]:
        reason = other_kernels.missing(name) if setting.dtype == torch.float32 else "it computes in float32 only"
        if reason is None:
            functions[name] = FORWARD_ONLY[name]
        else:
            notes.append(f"{name}: {reason}")
    for name, arranged in (("four calls", four_calls), ("one call", one_call)):
        if name not in names or setting.device.type != "cuda":
            continue
        try:
            from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
        except ImportError as error:
            notes.append(f"{name}: mamba-ssm cannot be imported ({error})")
        else:
            functions[name] = functools.partial(arranged, selective_scan_fn=selective_scan_fn)
    return functions, notes


def different_work(y: Tensor, expected: Tensor, limit: float) -> str | None:
    """How a result differs from the expected one by more than this share of its largest value, or None."""
    difference = float((y - expected).abs().max() / expected.abs().max())
    return None if difference <= limit else f"its result differs by {difference:.1e} of the largest value; not timed"


def _too_large(name: str, states: int, tokens: int, backward: bool, device: torch.device) -> str | None:
    if name in ("reference", "loop") and backward and tokens > LOOP_TOKENS:
        return f"its backward takes quadratic time, and there are more than {LOOP_TOKENS} tokens"
    needed = STATE_TENSORS.get(name, (0, 0))[backward] * 4 * states
    if needed > total_memory(device) / 2:
        return f"it would take {needed / 1e9:.0f} GB, more than half of the memory"
    return None


def scan_run(function: Callable, inputs: dict[str, Tensor], backward: bool) -> Callable[[], object]:
    """A call of a scan, or with `backward` a call that returns the gradients of all floating-point inputs."""
    if not backward:
        return torch.no_grad()(functools.partial(function, **inputs))
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items() if x.is_floating_point()}
    with torch.no_grad():
        grad = torch.randn_like(function(**inputs))
    return lambda: torch.autograd.grad(function(**leaves, orders=inputs["orders"]), list(leaves.values()), grad)


def tokens_last(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The arguments of `cross_scan`, rearranged for `four_calls`."""
    directions = torch.arange(len(inputs["orders"]), device=inputs["orders"].device).unsqueeze(1)
    moved = {name: inputs[name][:, directions, inputs["orders"]] for name in ("delta", "B", "C")} | {"u": inputs["u"]}
    return inputs | {name: x.transpose(2, 3).contiguous() for name, x in moved.items()}


def _exponentials() -> list[Candidate]:
    """Exponentials alone, a lower bound for a scan: torch.exp in the level-2 cache, and our kernels' in registers."""
    cache = os.sysconf("SC_LEVEL2_CACHE_SIZE") if "SC_LEVEL2_CACHE_SIZE" in os.sysconf_names else 0
    numbers = -torch.rand(torch.get_num_threads() * (cache if cache > 0 else 2**20) // 8)
    run = functools.partial(torch.exp, numbers, out=numbers.clone())
    candidates = [Candidate("torch.exp", run, len(numbers) / 1e9, scales=False)]
    if native.unavailable() is None:
        repeats = 2**17
        bare = functools.partial(native.bare_exponentials, repeats)
        candidates.append(Candidate("bare exp", bare, bare() / 1e9, scales=False))
    return candidates
