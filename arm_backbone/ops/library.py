"""Registration of operators with PyTorch's dispatcher; all private names of torch that the operators use are here.

`define_op` is like `torch.library.custom_op`, without its per-call aliasing and schema checks, which cost 7 % of a
196-token CPU scan.
"""

import functools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn

import torch
import torch.fx
from torch import Tensor, nn
from torch._C import _functorch as functorch
from torch._higher_order_ops.scan import scan_op
from torch._ops import OpOverload
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.weak import WeakIdKeyDictionary  # noqa: F401 for program.py

# what to do if the kernels cannot follow a derivative
PLAIN_REMEDY = "the plain PyTorch back end: `with arm_backbone.ops.scan_backend('torch')`, or ARM_SCAN_BACKEND=torch"
_LIBRARY = torch.library.Library("arm", "FRAGMENT")
_HOOKS = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
_GLOBAL_HOOKS = [getattr(nn.modules.module, f"_global_{kind}") for kind in _HOOKS]  # of all modules; changed in place


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
                f"call without create_graph=True, or differentiate with torch.func and {PLAIN_REMEDY}"
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
        if has_tangent(args):  # a registered operator would drop it
            raise_no_derivative("forward-mode")
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args):
            return function.apply(keyset, *args)
        return run(keyset, *args)

    _LIBRARY.impl(operator._opname, choose, "Autograd", with_keyset=True)


def has_tangent(tensors: Iterable) -> bool:
    """Whether forward-mode differentiation is active and one of the tensors carries a tangent."""
    if forward_ad._current_level < 0:
        return False
    return any(isinstance(t, Tensor) and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def derivative_needed(tensors: Iterable[Tensor | None]) -> str | None:
    """The derivative, if any, that only plain PyTorch operations on these tensors can give: its name.

    That is forward-mode differentiation, and all of torch.func but for vmap alone.
    """
    if torch.compiler.is_compiling():
        return None
    tensors = [t for t in tensors if t is not None]
    if has_tangent(tensors):
        return "forward-mode"
    if not torch._C._are_functorch_transforms_active():
        return None
    kinds = {interpreter.key() for interpreter in functorch.get_interpreter_stack() or ()}
    derived = kinds & {functorch.TransformType.Grad, functorch.TransformType.Jvp}
    return "torch.func" if derived and any(map(functorch.is_functorch_wrapped_tensor, tensors)) else None


def raise_no_derivative(kind: str) -> NoReturn:
    """Raise an error that says which back end has this kind of derivative."""
    raise NotImplementedError(f"the kernels do not support {kind} derivatives; use {PLAIN_REMEDY}")


def without_autocast(device: str) -> AbstractContextManager:
    """A context without autocast, which meta tensors do not support.

    torch.export would record the context as an operator of its own.
    """
    needless = torch.compiler.is_exporting() or device == "meta"
    return nullcontext() if needless else torch.autocast(device, enabled=False)


def scan_loop(step: Callable, first: Tensor, tokens: list[Tensor], constant: Tensor) -> tuple[Tensor, Tensor]:
    """Run `step` over tokens while `torch.export` records a program, in which this is one operator.

    Args:
        step: (state, a row of each of `tokens`, constant) -> (next state, output), tensors of fixed shapes.
        first: the state before the first token.
        tokens: tensors (L, ...).

    Returns:
        the last state, and the outputs (L, ...).
    """
    return scan_op(step, (first,), tokens, (constant,))


def check_images(images: Tensor) -> None:
    """Check that images are a batch, not symbols of torch.fx.

    Raises:
        NotImplementedError: if torch.fx traces a model symbolically; it says what to use instead.
        ValueError: for another number of dimensions than (B, C, H, W).
    """
    if isinstance(images, torch.fx.Proxy):
        raise NotImplementedError(
            "torch.fx cannot trace the scan symbolically, because its orders depend on the image's size; use "
            "torch.export.export or torch.compile, or make this module a leaf of the tracer"
        )
    if images.ndim != 4:
        raise ValueError(f"images must be (B, C, H, W), not {tuple(images.shape)}; for one image give image[None]")


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd records what is computed from these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def is_eager(tensors: Iterable[Tensor | None]) -> bool:
    """Whether nothing observes operators on these tensors, so that kernels may run without the dispatcher.

    Observers are torch.compile, tracing, torch.func, forward-mode differentiation, a dispatch mode (FLOP counters,
    selective checkpointing, fake tensors), tensor subclasses, and a sign that is not yet applied (`Tensor.is_neg`).
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return (
        all(t is None or (type(t) in (Tensor, nn.Parameter) and not t.is_neg()) for t in tensors)
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and _get_current_dispatch_mode() is None
    )


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling a module runs PyTorch's forward of `kind` and nothing else.

    A subclass is not plain, nor is a module with hooks, one that was compiled in place, or one whose `forward` or
    `__call__` was replaced, on itself or on its class. Ask this before you read a module's weights instead of calling
    the module.
    """
    if type(module) is not kind:
        return False
    own = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    changed = any(own) or "forward" in module.__dict__ or "_call_impl" in module.__dict__
    if changed or module._compiled_call_impl is not None or any(_GLOBAL_HOOKS):
        return False
    of_class = _is_own(kind.__call__, nn.Module) and _is_own(kind._call_impl, nn.Module)
    return of_class and _is_own(kind.forward, kind)


def _is_own(method: Callable, kind: type) -> bool:
    """Whether a method was written in the file of a class, not put in its place."""
    return getattr(method, "__globals__", {}).get("__name__") == kind.__module__


def cast_together(tensors: list[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """Convert tensors to a dtype, on a GPU in one launch; those that have it, and None, are returned as they are."""
    results = [t if t is None or t.dtype == dtype else torch.empty_like(t, dtype=dtype) for t in tensors]
    pairs = [(result, t) for result, t in zip(results, tensors, strict=True) if result is not t]
    if pairs:
        copy_together(*zip(*pairs))
    return results


def copy_together(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    """Copy tensors into others of any dtype, on a GPU in one launch."""
    torch._foreach_copy_(list(targets), list(sources))


def compute_dtype(x: Tensor) -> torch.dtype:
    """dtype of matmuls with x: autocast's if enabled, else x.dtype."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):  # autocast does not support meta tensors
        return torch.get_autocast_dtype(device)
    return x.dtype
