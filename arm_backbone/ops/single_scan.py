"""Selective scan of one sequence with the arguments and shapes of `mamba_ssm`'s `selective_scan_fn`.

Legend: B batch, D channels, L tokens, N state size, G groups of channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_real, check_tensors
from .orders import ScanOrders
from .scan import scan_with_state


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """One causal scan, with the arguments and shapes of `mamba_ssm`'s `selective_scan_fn`.

    Args:
        u, delta, z: (B, D, L); the result is multiplied by silu(z).
        A: (D, N), real.
        B, C: (B, N, L); or (B, G, N, L), where G divides D, for consecutive groups of D / G channels; or (D, N) if they
            are the same for all tokens. Each group is a scan of its own; a constant B or C costs one scan per state.
        D, delta_bias: (D,).

    Returns:
        (B, D, L), and with `return_last_state` the state after the last token, (B, D, N), which is not differentiable.

    Raises:
        ValueError: for incompatible shapes, devices or dtypes.
        NotImplementedError: for forward-mode and torch.func derivatives with a back end of kernels.
    """
    groups = _check(u, delta, A, B, C, D, z, delta_bias)
    options = delta_softplus, return_last_state, backend
    if groups == 1:
        B, C = (x.squeeze(1) if x.ndim == 4 else x for x in (B, C))
        y, state = _scan_group(u, delta, A, B, C, D, delta_bias, *options)
    else:
        by_channel = [_parts(x, 1, groups) for x in (u, delta)]
        parameters = [_parts(x, 0, groups) for x in (A, D, delta_bias)]
        per_state = [_parts(x, 0, groups) if x.ndim == 2 else _groups(x, groups) for x in (B, C)]
        parts = zip(*by_channel, parameters[0], *per_state, *parameters[1:], strict=True)
        ys, states = zip(*(_scan_group(*part, *options) for part in parts), strict=True)
        y, state = torch.cat(ys, 1), torch.cat(states, 1) if return_last_state else None
    if z is not None:
        y = y * F.silu(z)
    return (y, state) if return_last_state else y


def _parts(x: Tensor | None, axis: int, groups: int) -> tuple[Tensor | None, ...]:
    return (None,) * groups if x is None else x.chunk(groups, axis)


def _groups(x: Tensor, groups: int) -> tuple[Tensor, ...]:
    """B or C of each group, (B, N, L)."""
    return x.unbind(1) if x.ndim == 4 and x.shape[1] == groups else (x.reshape(len(x), *x.shape[-2:]),) * groups


def _scan_group(u, delta, A, B, C, D, delta_bias, softplus, last, backend) -> tuple[Tensor, Tensor | None]:
    """y (B, D, L) and, with `last`, the final state (B, D, N), for B and C (B, N, L) or (D, N)."""
    if B.ndim == 2 or C.ndim == 2:
        return _scan_constant(u, delta, A, B, C, D, delta_bias, softplus, last, backend)
    u, delta, B, C = (x.transpose(1, 2).unsqueeze(1) for x in (u, delta, B, C))
    A, D, delta_bias = (None if x is None else x.unsqueeze(0) for x in (A, D, delta_bias))
    y, states = scan_with_state(u, delta, A, B, C, D, delta_bias, _forward(1, u), softplus, "mean", backend)
    return y.transpose(1, 2), states[-1, :, 0].transpose(1, 2) if last else None


def _scan_constant(u, delta, A, B, C, D, delta_bias, softplus, last, backend) -> tuple[Tensor, Tensor | None]:
    """As `_scan_group`, with a B or C that is the same for all tokens and differs between channels.

    The scan is linear in u, so a constant is a factor of u that differs between states: each state is a direction of
    its own, of state size 1.
    """
    channels, states = A.shape
    batch, _, length = u.shape

    def per_direction(x: Tensor) -> Tensor:
        """(B, N, L) -> (B, K = N, L, 1); ones for a constant."""
        return (u.new_ones(batch, states, length) if x.ndim == 2 else x).unsqueeze(3)

    def scan(*constants: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        tokens = u.transpose(1, 2).unsqueeze(1).expand(-1, states, -1, -1)
        for constant in constants:
            tokens = tokens * constant.t().unsqueeze(1)  # (B, K, L, D)
        steps = delta.transpose(1, 2).unsqueeze(1).expand_as(tokens)
        bias = None if delta_bias is None else delta_bias.expand(states, -1)
        arguments = (tokens, steps, A.t().unsqueeze(2), per_direction(B), C, None, bias)
        return scan_with_state(*arguments, _forward(states, tokens), softplus, "sum", backend)

    y, saved = scan(*(x for x in (B, C) if x.ndim == 2), C=per_direction(C))
    y = y.transpose(1, 2)
    if D is not None:
        y = y + D.unsqueeze(1) * u
    state = None
    if last:
        if C.ndim == 2:  # the state does not depend on C
            with torch.no_grad():
                _, saved = scan(*([B] if B.ndim == 2 else []), C=per_direction(C))
        state = saved[-1, :, :, 0].transpose(1, 2)
    return y.to(u.dtype), state


def _forward(directions: int, tokens: Tensor) -> ScanOrders:
    """Orders that visit tokens (..., L, D) from the first to the last."""
    return ScanOrders.trusted(torch.arange(tokens.shape[-2], device=tokens.device).expand(directions, -1))


def _check(u, delta, A, B, C, D, z, delta_bias) -> int:
    """The number of groups G."""
    for name, x in (("u", u), ("A", A), ("B", B), ("C", C)):
        if isinstance(x, Tensor) and x.is_complex():
            raise ValueError(f"{name} is complex; selective_scan takes real tensors only")
        check_real(name, x)
    if u.ndim != 3 or A.ndim != 2 or B.ndim not in (2, 3, 4) or C.ndim not in (2, 3, 4):
        raise ValueError(
            "selective_scan takes u (B, D, L), A (D, N), B and C (B, N, L), (B, G, N, L) or (D, N); got "
            f"u {tuple(u.shape)}, A {tuple(A.shape)}, B {tuple(B.shape)}, C {tuple(C.shape)}"
        )
    (batch, channels, length), states = u.shape, A.shape[1]
    counts = {x.shape[1] for x in (B, C) if x.ndim == 4} - {1}
    groups = counts.pop() if counts else 1
    if counts or groups < 1 or channels % groups:
        raise ValueError(
            f"B {tuple(B.shape)} and C {tuple(C.shape)} are (B, G, N, L): G must be the same in both or 1, "
            f"and divide the {channels} channels of u"
        )

    def expected(x: Tensor) -> tuple[int, ...]:
        if x.ndim == 2:
            return channels, states
        return (batch, *x.shape[1:-2], states, length)

    shapes = {
        "u": (u, u.shape),
        "delta": (delta, u.shape),
        "A": (A, (channels, states)),
        "B": (B, expected(B)),
        "C": (C, expected(C)),
        "D": (D, (channels,)),
        "z": (z, u.shape),
        "delta_bias": (delta_bias, (channels,)),
    }
    check_tensors(shapes, ("u", "A"))
    return groups
