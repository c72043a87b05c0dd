"""Random valid and invalid calls of all operators with the native kernels, for a library built with sanitizers.

Usage: sanitized_calls.py LIBRARY CALLS SEED. A sanitizer ends the process at the first fault. Prints as JSON how many
calls returned a result and how many were refused, by type of error.
"""

import collections
import json
import random
import sys
from pathlib import Path

import torch
from torch import nn

from arm_backbone.ops import (
    ScanOrders,
    add_layer_norm,
    cross_conv,
    cross_scan,
    gated_linear,
    layer_norm,
    mamba_inner,
    selective_scan,
    silu_gate,
)
from arm_backbone.ops.cpu import library

TYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16)
REFUSALS = (ValueError, RuntimeError, TypeError, IndexError, AttributeError)


def numbers(*shape: int, dtype=torch.float32) -> torch.Tensor:
    """A tensor in memory of its own size, so that a sanitizer notices any access beyond it."""
    return torch.randn(shape).to(dtype)


def laid_out(draw: random.Random, x: torch.Tensor) -> torch.Tensor:
    """The same numbers in another layout."""
    kind = draw.randrange(5)
    if kind == 0 and x.ndim > 1:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if kind == 1 and x.ndim:
        return torch.cat([x, x], -1)[..., : x.shape[-1]]
    if kind == 2 and x.numel():
        return torch.cat([x.new_ones(1), x.flatten()])[1:].view(x.shape)
    if kind == 3 and x.ndim and x.shape[0] > 0:
        return x[:1].expand(x.shape)
    return x


def spoiled(draw: random.Random, x):
    """A tensor that does not fit."""
    kind = draw.randrange(9)
    if not isinstance(x, torch.Tensor) or not x.ndim:
        return None
    if x.dtype == torch.int64:
        x = x.clone()
        if x.numel():
            x.view(-1)[draw.randrange(x.numel())] = draw.choice([-1, x.shape[-1], 10**8, -(2**62), 0])
        return draw.choice([x, x.int(), x[:, :-1], x[:-1], ScanOrders.trusted(x), x + 1, x[0] if len(x) else x])
    if kind == 0:
        return x[..., :-1]
    if kind == 1:
        return x[:-1]
    if kind == 2:
        return x.unsqueeze(0)
    if kind == 3:
        return x.to(draw.choice([torch.complex64, torch.int32, torch.bool, torch.float64, torch.float8_e4m3fn]))
    if kind == 4:
        return x.to("meta")
    if kind == 5:
        return x.to_sparse()
    if kind == 6:
        return torch.cat([x, x], -1)
    if kind == 7:
        return x[..., :0]
    return x[0]


def call(draw: random.Random) -> None:
    """One random call, and its backward."""
    batch, directions = draw.choice([0, 1, 2, 3]), draw.choice([1, 1, 2, 4])
    length, channels = draw.choice([0, 1, 2, 5, 23, 24, 25, 49]), draw.choice([0, 1, 3, 15, 16, 17, 64, 65, 130])
    states, taps, rank = draw.choice([0, 1, 3, 8, 16, 17]), draw.choice([0, 1, 2, 4, 8, 9]), draw.choice([0, 1, 3])
    dtype = draw.choice(TYPES)
    orders = torch.stack([torch.randperm(length) for _ in range(directions)])
    per_token, width = (batch, directions, length), (directions, channels)
    kind, autocast = draw.randrange(8), draw.random() < 0.5
    if kind in (0, 1):
        given = dict(u=numbers(*per_token, channels, dtype=dtype), delta=numbers(*per_token, channels, dtype=dtype))
        given |= dict(A=-numbers(*width, states).abs(), B=numbers(*per_token, states), C=numbers(*per_token, states))
        given |= dict(D=draw.choice([None, numbers(*width)]), delta_bias=draw.choice([None, numbers(*width)]))
        function, given = cross_scan, given | dict(orders=orders)
    elif kind == 2:
        function = cross_conv
        given = dict(
            x=numbers(batch, length, channels, dtype=dtype), weight=numbers(*width, taps), bias=numbers(*width)
        )
        given |= dict(orders=orders)
    elif kind in (3, 4):
        function = mamba_inner
        given = dict(x=numbers(batch, length, channels, dtype=dtype), conv_weight=numbers(*width, taps))
        given |= dict(conv_bias=numbers(*width), x_proj_weight=numbers(directions, rank + 2 * states, channels))
        given |= dict(dt_proj_weight=numbers(*width, rank), A_log=numbers(*width, states), D=numbers(*width))
        given |= dict(delta_bias=numbers(*width), orders=orders)
    elif kind == 5:
        function, groups = selective_scan, draw.choice([1, 2, 3])
        forms = [(channels, states), (batch, states, length), (batch, groups, states, length)]
        given = dict(u=numbers(batch, channels, length), delta=numbers(batch, channels, length))
        given |= dict(
            A=-numbers(channels, states).abs(), B=numbers(*draw.choice(forms)), C=numbers(*draw.choice(forms))
        )
        given |= dict(z=numbers(batch, channels, length), D=numbers(channels))
    elif kind == 6:
        linear = nn.Linear(max(channels, 1), 5)
        if draw.random() < 0.2:
            linear.weight = nn.Parameter(numbers(5, channels + 1))

        def function(x, z):
            return silu_gate(x, z) if draw.random() < 0.5 else gated_linear(x, z, linear)

        given = dict(x=numbers(batch, length, channels, dtype=dtype), z=numbers(batch, length, channels, dtype=dtype))
    else:
        norm = draw.choice([nn.LayerNorm, nn.RMSNorm])(max(channels, 1))
        if draw.random() < 0.3:
            norm.weight = nn.Parameter(numbers(draw.choice([channels + 1, max(channels - 1, 0), 1])))

        def function(x, branch):
            return layer_norm(x, norm) if draw.random() < 0.5 else add_layer_norm(x, branch, norm)[1]

        given = dict(x=numbers(batch, length, channels), branch=numbers(batch, length, channels, dtype=torch.bfloat16))
    for name, value in given.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and draw.random() < 0.3:
            given[name] = laid_out(draw, value)
    if draw.random() < 0.5:
        name = draw.choice(list(given))
        given[name] = spoiled(draw, given[name])
    if draw.random() < 0.8:
        for name, value in given.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.layout == torch.strided:
                given[name] = value.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = function(**given)
    if result.requires_grad:
        result.float().sum().backward()


def main(path: str, calls: int, seed: int) -> None:
    library.LIBRARY = Path(path)
    assert library.unavailable() is None, library.unavailable()
    counts = collections.Counter()
    for i in range(calls):
        draw = random.Random(seed + i)
        torch.manual_seed(seed + i)
        torch.set_num_threads(draw.choice([1, 1, 1, 3]))
        try:
            call(draw)
            counts["results"] += 1
        except REFUSALS as error:
            counts[type(error).__name__] += 1
    print(json.dumps(counts))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
