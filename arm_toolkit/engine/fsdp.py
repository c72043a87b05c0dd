"""Fully sharded training: every process holds a part of each weight, gradient and optimizer state (ARM-H).

`model_wrapper_cfg = dict(type="fully_shard")` in a pretraining configuration. mmengine's own wrapper is the older
FullyShardedDataParallel, which refuses a CPU; PyTorch's `fully_shard` does not, and keeps the names of the weights.
"""

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.logging import print_log
from mmengine.utils import apply_to
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from arm_pretrain import ARMPretrainer

from ..errors import ConfigError


def shard(model: nn.Module) -> nn.Module:
    """Shard a pretraining model over all processes, in place: block by block, then the rest.

    Raises:
        ConfigError: if it is no pretraining model.
    """
    if not isinstance(model, ARMPretrainer):
        raise ConfigError(
            f"model_wrapper_cfg.type=fully_shard with model.type={type(model).__name__}: leave model_wrapper_cfg out, "
            "it shards ARMPretrainer alone"
        )
    processes = get_world_size()
    mesh = init_device_mesh(next(model.parameters()).device.type, (processes,))

    def dimension(parameter: nn.Parameter) -> Shard | None:
        """The first that divides evenly: the scans' weights begin with the number of scans, which is 1."""
        return next((Shard(i) for i, size in enumerate(parameter.shape) if size % processes == 0), None)

    for part in (*model.sharded_parts(), model):
        # the root too: between its forwards a checkpoint needs its gradients as shards
        fully_shard(part, mesh=mesh, shard_placement_fn=dimension, reshard_after_forward=True)
    for method in model.forward_methods():
        register_fsdp_forward_method(model, method)
    everything = sum(parameter.numel() for parameter in model.parameters())
    here = sum(parameter.to_local().numel() for parameter in model.parameters())
    print_log(f"Sharded over {processes} processes: {here:,} of {everything:,} weights on the first", logger="current")
    return model


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(tree):
    """Nested dicts and lists with every tensor on the CPU, sharded ones gathered; for the first process, the others get
    None for a tensor.

    Every process must call it.
    """

    def gather(tensor: Tensor) -> Tensor | None:
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor  # before it leaves the device
        return full.cpu() if get_rank() == 0 else None

    return apply_to(tree, lambda x: isinstance(x, Tensor), gather)


def part_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Of a whole tensor the part of this process, where the parameter is sharded; on the parameter's device."""
    tensor = tensor.to(parameter.device)
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def shard_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Shard, in place, what a checkpoint loaded whole."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:  # not Adam's number of steps
                    state[key] = part_like(value, parameter)
