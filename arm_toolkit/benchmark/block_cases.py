"""Cases of `tools/benchmark.py block`: a block of ARM or Vim, its matrix products alone, and the usual implementation.

Legend: B batch, L tokens, D channels.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from arm_backbone.arm import resolve_arch, trunk_class
from arm_backbone.ops import ScanOrders
from arm_backbone.recompute import run_checkpointed

from .alternatives import conv_silu, usual_mixer, usual_swiglu
from .case import Candidate, Case, Grid, Setting, launched_and_captured, resolved, with_backend
from .scan_cases import scan_inputs, scan_run, trusted_scan


def block_cases(
    setting: Setting,
    grids: list[Grid],
    arch: str = "base",
    backward: bool = False,
    backends: list[str] = ("auto",),
    encoder: str = "ARM",
) -> Iterator[Case]:
    """For each grid the forward, and with `backward` also forward and backward together.

    The first candidate is the block's matrix products ("GEMMs"), followed by the block and its scan alone on each back
    end. Variants:

    * with a dtype other than float32: the products once with weights of that dtype, once with autocast's casts;
    * with a dtype other than float32: the forward of a block whose weights have that dtype ("weights held");
    * the backward with activation checkpointing ("with_cp");
    * on a GPU: the usual implementation, with one mamba-ssm call per direction, and both as CUDA graphs ("graph").

    Args:
        encoder: "ARM" or "Vim", see `arm_backbone.arm.trunk_class`.
    """
    trunk = trunk_class(encoder)
    dim, num_layers = resolve_arch(arch, trunk.archs)
    block = trunk.block_type(dim, trunk.most_scans, 0.0, num_layers).to(setting.device)
    held = copy.deepcopy(block).to(setting.dtype)
    for grid in grids:
        x = setting.randn(setting.batch, grid.tokens, dim)
        usual_orders = grid.orders(trunk.most_scans, setting.device)
        orders = ScanOrders.trusted(usual_orders)
        products = matrix_products(block, setting, grid.tokens)
        scan = scan_inputs(setting, grid, *block.mixer.D.shape)
        for with_backward in (False, True) if backward else (False,):
            case = Case("forward and backward" if with_backward else "forward", grid.tokens, "tokens", "", [])
            case.title = f"{encoder}-{arch} block, batch {setting.batch}, {grid}, {setting.type_name}"
            case.tensor = "(B, L, D) float32", x.numel() * 4
            plain = [(inputs, weight.to(setting.dtype)) for inputs, weight in products]
            case.candidates.append(Candidate("GEMMs", products_run(plain, setting, with_backward)))
            if setting.dtype != torch.float32:
                run = products_run(products, setting, with_backward)
                case.candidates.append(Candidate("GEMMs, weights cast", run))
            for backend in resolved(setting, backends):
                run = with_backend(backend, _block_run(block, x, orders, setting, with_backward))
                case.candidates += launched_and_captured(f"block, {backend}", run, setting)
                run = scan_run(functools.partial(trusted_scan, backend=backend), scan, with_backward)
                case.candidates.append(Candidate(f"scan alone, {backend}", run))
                if with_backward:
                    # a block with kernels already does nearly what "selective" does
                    with_cp = "full" if backend in ("triton", "cpu") else "selective"
                    run = _block_run(block, x, orders, setting, with_backward, with_cp)
                    name = f"block, {backend}, with_cp={with_cp!r}"
                    case.candidates.append(Candidate(name, with_backend(backend, run)))
                if setting.dtype != torch.float32 and not with_backward:  # without autocast
                    run = _block_run(held, x.to(setting.dtype), orders, replace(setting, dtype=torch.float32), False)
                    case.candidates.append(Candidate(f"block, {backend}, weights held", with_backend(backend, run)))
            if setting.device.type == "cuda":
                try:
                    usual = _usual_block(block)
                except ImportError as error:
                    case.notes.append(f"four mamba-ssm calls: mamba-ssm cannot be imported ({error})")
                else:
                    run = _block_run(usual, x, usual_orders, setting, with_backward)
                    case.candidates += launched_and_captured("block, four mamba-ssm calls", run, setting)
            yield case


def matrix_products(block: nn.Module, setting: Setting, tokens: int) -> list[tuple[Tensor, Tensor]]:
    """The block's matrix products: inputs (., rows, I) in the setting's dtype, and weights (., I, O)."""
    mixer, rows = block.mixer, setting.batch * tokens
    linears = [module.weight for module in block.modules() if isinstance(module, nn.Linear)]
    weights = [weight.detach().mT for weight in (mixer.x_proj_weight, mixer.dt_proj_weight, *linears)]
    return [(setting.randn(*w.shape[:-2], rows, w.shape[-2]).to(setting.dtype), w) for w in weights]


def products_run(products: list[tuple[Tensor, Tensor]], setting: Setting, backward: bool) -> Callable[[], object]:
    """A run of all products one after another, or with `backward` of products and gradients."""
    leaves = [tuple(tensor.detach().requires_grad_() for tensor in pair) for pair in products]
    grads = [torch.randn(*x.shape[:-1], w.shape[-1], dtype=x.dtype, device=x.device) for x, w in leaves]

    def run() -> object:
        with setting.autocast(), torch.set_grad_enabled(backward):
            outputs = [torch.matmul(x, w) for x, w in leaves]
        return torch.autograd.grad(outputs, sum(leaves, ()), grads) if backward else outputs

    return run


def _block_run(
    block: nn.Module,
    x: Tensor,
    orders: ScanOrders | Tensor,
    setting: Setting,
    backward: bool,
    with_cp: bool | str = False,
) -> Callable[[], object]:
    leaves, grad = [x.detach().requires_grad_(), *block.parameters()], torch.randn_like(x)

    def run() -> object:
        with setting.autocast(), torch.set_grad_enabled(backward):
            y = run_checkpointed(block, leaves[0], orders, with_cp)
        return torch.autograd.grad(y, leaves, grad) if backward else y

    return run


def _usual_block(block: nn.Module) -> nn.Module:
    """A copy of the block with `usual_mixer` on mamba-ssm's kernel and `usual_swiglu`.

    Raises:
        ImportError: if mamba-ssm cannot be imported.
    """
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
    if hasattr(usual, "mlp"):
        usual.mlp.forward = functools.partial(usual_swiglu, usual.mlp)
    return usual
