"""The key `compile` of a configuration: torch.compile for the blocks of a model in training, on a GPU as CUDA graphs.

mmengine's key of this name compiles the whole step, whose logging, targets and losses break into many graphs. Blocks
are where a small batch waits for launches from Python, which a graph replays.
"""

import torch
from mmengine.hooks import Hook
from torch import nn

from arm_backbone.optim import find_encoder

from ..errors import ConfigError, one_line
from .batches_hook import unwrapped

SIZES = 8  # sizes of images for which graphs are recorded; each takes memory


def compile_arguments(value: object) -> dict | None:
    """Arguments of torch.compile from the value of the key; None if nothing is compiled.

    Args:
        value: True, a mode of torch.compile, a dict of its arguments; False and None compile nothing.

    Raises:
        ConfigError: for any other value, or one that torch.compile refuses.
    """
    if value is None or value is False:
        return None
    arguments = {} if value is True else dict(mode=value) if isinstance(value, str) and value else value
    if not isinstance(arguments, dict):
        raise ConfigError(f"compile={value!r}: give True, a mode of torch.compile, or a dict of its arguments")
    backend = arguments.get("backend", "inductor")
    if not isinstance(backend, str) and not callable(backend):
        raise ConfigError(f"compile={value!r}: give the backend's name")
    try:
        torch.compile(lambda: None, **arguments)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"compile={value!r}: torch.compile refuses it ({one_line(error)})") from error
    return dict(arguments)


def records_graphs(arguments: dict) -> bool:
    """Whether torch.compile records CUDA graphs with these arguments."""
    options = arguments.get("options") or {}
    by_mode = arguments.get("mode") in ("reduce-overhead", "max-autotune")
    return by_mode or bool(options.get("triton.cudagraphs")) or arguments.get("backend") == "cudagraphs"


def compile_blocks(model: nn.Module, arguments: dict) -> list[nn.Module]:
    """Compile every block of a model in place, which changes no name of a weight; returns the blocks.

    Args:
        arguments: of torch.compile.

    Raises:
        ConfigError: if the model has no list of modules that is called `blocks`.
    """
    import torch._dynamo  # takes a second

    lists = (module for name, module in model.named_modules() if name.rpartition(".")[2] == "blocks")
    blocks = [block for found in lists if isinstance(found, nn.ModuleList | nn.Sequential) for block in found]
    if not blocks:
        raise ConfigError(f"{type(model).__name__} has no blocks, so there is nothing to compile; leave compile out")
    # blocks share their code, and each drop path rate and kind of call is a variant of it
    settings = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, 4 * len(blocks))
    for block in blocks:
        block.compile(**arguments)
    return blocks


class CompiledBlocksHook(Hook):
    """Compiles the blocks before training. Validation runs them uncompiled: its images have many sizes.

    Args:
        value: of the key, see `compile_arguments`.
    """

    priority = "VERY_LOW"  # after hooks that copy the model

    def __init__(self, value: object) -> None:
        self._value, self._blocks, self._calls, self._sizes = value, [], [], set()

    def before_train(self, runner) -> None:
        """Compile.

        Raises:
            ConfigError: if the model has no blocks, or gradients are accumulated in the memory of CUDA graphs.
        """
        arguments, model = compile_arguments(self._value), unwrapped(runner.model)
        steps = runner.cfg.optim_wrapper.get("accumulative_counts", 1)
        if records_graphs(arguments) and steps > 1:
            raise ConfigError(
                f"compile={self._value!r} with optim_wrapper.accumulative_counts={steps}: CUDA graphs reuse the memory "
                "of gradients; set compile=True, which records none"
            )
        self._blocks = compile_blocks(model, arguments)
        encoder = find_encoder(model)[1]
        if records_graphs(arguments) and encoder is not None:
            encoder.register_forward_pre_hook(self._note_size, with_kwargs=True)
        runner.logger.info(f"compile: {len(self._blocks)} blocks, which delays the first steps")

    def _note_size(self, encoder: nn.Module, args: tuple, kwargs: dict) -> None:
        """Refuse to record graphs for more than `SIZES` sizes of images, in training."""
        images = args[0] if args else kwargs.get("inputs")
        if not encoder.training or images is None:
            return
        self._sizes.add(tuple(images.shape[-2:]))
        if len(self._sizes) > SIZES:
            raise ConfigError(
                f"compile={self._value!r}: images have more than {SIZES} sizes, and CUDA graphs are recorded for each; "
                "set compile=True, which records none"
            )

    def before_train_iter(self, runner, batch_idx: int, data_batch: dict | None = None) -> None:
        torch.compiler.cudagraph_mark_step_begin()  # graphs may overwrite the last step's results

    def before_val(self, runner) -> None:
        self._calls = [block._compiled_call_impl for block in self._blocks]
        for block in self._blocks:
            block._compiled_call_impl = None

    def after_val(self, runner) -> None:
        for block, call in zip(self._blocks, self._calls, strict=True):
            block._compiled_call_impl = call
