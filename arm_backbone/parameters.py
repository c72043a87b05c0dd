"""Initial values of the parameters of a whole model."""

import torch
from torch import nn


@torch.no_grad()
def init_parameters(model: nn.Module) -> None:
    """Initialise every parameter and buffer of a model that was built on the meta device.

        with torch.device("meta"):
            model = ARM("huge")
        model.to_empty(device="cuda")
        init_parameters(model)

    Calls `reset_parameters()`, or `init_weights()` of timm's modules, children before parents, so that a parent can
    overwrite what its children initialised. The weights have the distributions of an ordinary construction, but differ
    for the same seed.

    Raises:
        TypeError: if a module holds parameters or buffers and has no `reset_parameters` (the model is then unchanged),
            or if a layer of ours was replaced by one of another kind.
    """
    resets = []
    for name, module in reversed(list(model.named_modules())):
        reset = getattr(module, "reset_parameters", None) or getattr(module, "init_weights", None)
        if reset is not None:
            resets.append(reset)
        elif [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            raise TypeError(f"{name or 'the model'} ({type(module).__name__}) has no reset_parameters(); add one")
    for reset in resets:
        reset()


def own_linears(module: nn.Module, *names: str) -> list[nn.Linear]:
    """The linear layers that a module built under these names, for their initialisation.

    Raises:
        TypeError: if one was replaced by another kind of layer (an adapter, a quantised layer), whose weights only its
            own code can initialise.
    """
    layers = [getattr(module, name) for name in names]
    for name, layer in zip(names, layers, strict=True):
        if not isinstance(layer, nn.Linear):
            raise TypeError(
                f"{type(module).__name__}.{name} is {type(layer).__name__}, not nn.Linear, and cannot be initialised; "
                "initialise the model before its layers are replaced"
            )
    return layers
