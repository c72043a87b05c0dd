"""Registration of operators with PyTorch's dispatcher; all private names of torch that the operators use are here.

`define_op` is like `torch.library.custom_op`, without its per-call aliasing and schema checks, which cost 7 % of a
196-token CPU scan.
"""

import functools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import _get_current_dispatch_mode

_LIBRARY = torch.library.Library("arm", "FRAGMENT")


def define_op(name: str, run: Callable, fake: Callable) -> OpOverload:
    """Register the operator `arm::name`, with the schema inferred from `run`'s annotations.

    Args:
        run: the implementation, on any device; its results must not share memory with its arguments or each other.
        fake: the implementation on tensors without data, for torch.compile and torch.export.
    """
    _LIBRARY.define(name + torch.library.infer_schema(run, mutates_args=()), tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"arm::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.arm, name).default


def no_double_backward(backward: Callable) -> Callable:
    """Decorator: makes double backward an error.

    PyTorch's `once_differentiable` only raises if the incoming gradient requires grad; otherwise a gradient penalty
    would silently be 0.
    """

    @functools.wraps(backward)
    def run(ctx, *grads):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the scan, convolution, gate and norm operators do not support double backward; "
                "call without create_graph=True"
            )
        return backward(ctx, *grads)

    return run


def register_backward(operator: OpOverload, setup_context: Callable, backward: Callable) -> None:
    """Register an operator's backward; `setup_context` and `backward` are as in a `torch.autograd.Function`."""

    def run(keyset, *args):
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    def forward(ctx, keyset, *args):
        output = run(keyset, *args)
        setup_context(ctx, args, output)
        return output

    @no_double_backward
    def without_keyset(ctx, *grads):
        return (None, *backward(ctx, *grads))

    methods = dict(forward=staticmethod(forward), backward=staticmethod(without_keyset))
    function = type(operator._opname, (torch.autograd.Function,), methods)  # graphs and traces show this name

    def choose(keyset, *args):
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args):
            return function.apply(keyset, *args)
        return run(keyset, *args)

    _LIBRARY.impl(operator._opname, choose, "Autograd", with_keyset=True)


def is_eager(tensors: Iterable[Tensor | None]) -> bool:
    """Whether nothing observes operators on these tensors, so that kernels may run without the dispatcher.

    Observers are torch.compile, tracing, torch.func, a dispatch mode (FLOP counters, selective checkpointing, fake
    tensors) and tensor subclasses.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return (
        all(t is None or type(t) in (Tensor, nn.Parameter) for t in tensors)
        and not torch._C._are_functorch_transforms_active()
        and _get_current_dispatch_mode() is None
    )


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling a module runs `kind`'s forward and nothing else: no subclass, no hooks, no other `forward`."""
    own = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    changed = any(own) or "forward" in vars(module) or nn.modules.module._has_any_global_hook()
    return type(module) is kind and not changed


def compute_dtype(x: Tensor) -> torch.dtype:
    """dtype of matmuls with x: autocast's if enabled, else x.dtype."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):  # autocast does not support meta tensors
        return torch.get_autocast_dtype(device)
    return x.dtype
