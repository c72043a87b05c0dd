"""Fully sharded training (for ARM-H): every process holds only a part of each weight, gradient and optimizer state.

Enabled by `model_wrapper_cfg = dict(type="fully_shard")` in a pretraining configuration. It uses PyTorch's
`fully_shard`, which keeps the names of the weights and also runs on CPUs. mmengine's wrapper uses the older
FullyShardedDataParallel, which does neither.
"""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.logging import print_log
from mmengine.utils import apply_to
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from arm_backbone.checkpoint.load import require_match

from ..errors import ConfigError


@runtime_checkable
class Shardable(Protocol):
    """The methods that a model needs to be sharded; `ARMPretrainer` and `MAEPretrainer` of `arm_pretrain` have them."""

    def sharded_parts(self) -> Iterable[nn.Module]:
        """Submodules to shard one by one, such as blocks: each gathers its weights only while it computes."""

    def forward_methods(self) -> Iterable[str]:
        """Names of methods, other than `forward`, that compute with the weights."""


def require_shardable(model: nn.Module) -> None:
    """Raise a ConfigError unless a model is `Shardable`."""
    if not isinstance(model, Shardable):
        raise ConfigError(
            f"model_wrapper_cfg.type=fully_shard with model.type={type(model).__name__}: only ARMPretrainer and "
            "MAEPretrainer can be sharded (see arm_toolkit.engine.fsdp.Shardable); remove model_wrapper_cfg"
        )


def shard(model: Shardable) -> nn.Module:
    """Shard a model over all processes, in place: its parts one by one, then the rest."""
    processes = get_world_size()
    mesh = init_device_mesh(next(model.parameters()).device.type, (processes,))

    def first_divisible(parameter: nn.Parameter) -> Shard | None:
        """The first dimension that divides evenly. In a scan's weights dimension 0 has size 1 (one scan)."""
        return next((Shard(i) for i, size in enumerate(parameter.shape) if size % processes == 0), None)

    for part in (*model.sharded_parts(), model):
        # reshard the root too: a checkpoint in the middle of gradient accumulation needs its gradients as shards
        fully_shard(part, mesh=mesh, shard_placement_fn=first_divisible, reshard_after_forward=True)
    for method in model.forward_methods():
        register_fsdp_forward_method(model, method)
    everything = sum(parameter.numel() for parameter in model.parameters())
    here = sum(parameter.to_local().numel() for parameter in model.parameters())
    print_log(f"Sharded over {processes} processes: {here:,} of {everything:,} weights on the first", logger="current")
    return model


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def gather_weights(model: nn.Module) -> dict[str, Tensor]:
    """All weights, unsharded and on the CPU, in the first process; {} in the others. Every process must call this."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def load_weights(model: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load unsharded weights into a sharded model. Every process must call this with the same weights.

    Args:
        where: name of the file, for messages.

    Raises:
        CheckpointError: if a tensor is missing, unexpected or of another shape.
    """
    require_match(model.state_dict(), state, where)
    set_model_state_dict(model, dict(state), options=StateDictOptions(full_state_dict=True))


def gather_tensors(tree):
    """Gather the tensors in nested dicts and lists: unsharded and on the CPU in the first process, None in the others.

    For gradients and optimizer state, whose format `torch.distributed.checkpoint.state_dict` would change. Every
    process must call this.
    """

    def gather(tensor: Tensor) -> Tensor | None:
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor  # gathers before leaving the device
        return full.cpu() if get_rank() == 0 else None

    return apply_to(tree, lambda x: isinstance(x, Tensor), gather)


def shard_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of an unsharded tensor, sharded and placed like the parameter."""
    tensor = tensor.to(parameter.device)
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def shard_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Shard the unsharded tensors that a checkpoint loaded into an optimizer, in place."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:  # not Adam's step counter
                    state[key] = shard_like(value, parameter)
