"""Fully sharded training: every process holds a part of each weight, gradient and optimizer state (for ARM-H).

Enabled by `model_wrapper_cfg = dict(type="fully_shard")` in a pretraining configuration. This is PyTorch's
`fully_shard`, which keeps the names of the weights and also runs on CPUs; mmengine wraps the older
FullyShardedDataParallel, which does neither.
"""

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
from arm_pretrain.protocol import Shardable

from ..errors import ConfigError


def shard(model: nn.Module) -> nn.Module:
    """Shard a model over all processes, in place: its parts one by one, then the rest.

    Raises:
        ConfigError: if the model is not `Shardable`.
    """
    if not isinstance(model, Shardable):
        raise ConfigError(
            f"model_wrapper_cfg.type=fully_shard with model.type={type(model).__name__}: only models with "
            "shard_units() can be sharded (arm_pretrain.protocol.Shardable); remove model_wrapper_cfg"
        )
    processes = get_world_size()
    mesh = init_device_mesh(next(model.parameters()).device.type, (processes,))

    def first_divisible(parameter: nn.Parameter) -> Shard | None:
        """Dimension to split: not always the first, which is the number of scans (1) in a scan's weights."""
        return next((Shard(i) for i, size in enumerate(parameter.shape) if size % processes == 0), None)

    for part in (*model.shard_units(), model):
        # reshard the root too: a checkpoint between two forwards needs its gradients as shards
        fully_shard(part, mesh=mesh, shard_placement_fn=first_divisible, reshard_after_forward=True)
    for method in model.sharded_methods:
        register_fsdp_forward_method(model, method)
    everything = sum(parameter.numel() for parameter in model.parameters())
    here = sum(parameter.to_local().numel() for parameter in model.parameters())
    print_log(f"Sharded over {processes} processes: {here:,} of {everything:,} weights on the first", logger="current")
    return model


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def gather_weights(model: nn.Module) -> dict[str, Tensor]:
    """The whole weights on the CPU in the first process, {} in the others; every process must call this."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def load_weights(model: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load whole weights into a sharded model, every tensor matched; every process must call this with the same ones.

    Args:
        where: name of the file, for messages.

    Raises:
        CheckpointError: if a tensor is missing, unexpected or of another shape.
    """
    require_match(model.state_dict(), state, where)
    set_model_state_dict(model, dict(state), options=StateDictOptions(full_state_dict=True))


def gather_tensors(tree):
    """Nested dicts and lists with every tensor whole and on the CPU in the first process, None in the others.

    For gradients and optimizer state, whose format `torch.distributed.checkpoint.state_dict` would change. Every
    process must call this.
    """

    def gather(tensor: Tensor) -> Tensor | None:
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor  # gathers before leaving the device
        return full.cpu() if get_rank() == 0 else None

    return apply_to(tree, lambda x: isinstance(x, Tensor), gather)


def shard_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a whole tensor, sharded and placed as the parameter is."""
    tensor = tensor.to(parameter.device)
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def shard_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Shard the whole tensors that a checkpoint loaded into an optimizer, in place."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:  # not Adam's step counter
                    state[key] = shard_like(value, parameter)
