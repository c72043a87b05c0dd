"""A model of timm as a backbone for dense prediction, or as a classifier, beside ARM.

Plain models (DeiT, AIMv2, DINOv2 and others) return the outputs of chosen blocks at one stride, hierarchical ones
(RegNetY, ConvNeXt, Swin) those of their stages.
"""

import inspect
import os

import timm
import torch
import torch.nn.functional as F
from timm.models import clean_state_dict, model_entrypoint
from timm.models._manipulate import group_with_matcher
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .arm import default_out_indices
from .checkpoint.accounting import describe_mismatch, describe_values, shorten
from .checkpoint.errors import CheckpointError, in_one_line
from .checkpoint.files import model_state, read_checkpoint
from .ops.library import check_images

TIMM = "timm"  # stands for timm's own weights in the place of a file
NORM_EPS = 1e-6
# arguments that let a timm model take images of any size, or of sizes other than its own
ANY_SIZE = dict(dynamic_img_size=True, always_partition=True)
HEADS = ("head", "head.fc", "head.linear", "fc", "classifier")
# arguments of timm.create_model that load weights
_WEIGHTS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


class TimmModel(nn.Module):
    """What a backbone and a classifier share: a timm model, its layers for the optimizer, and its weights.

    Args:
        name: of a model in timm's registry, perhaps with the tag of its weights ("deit_base_patch16_224.fb_in1k").
        drop_path_rate: stochastic depth rate, which timm lets rise linearly with depth. None: the model's own, which
            is 0 for most.
        arguments: further arguments of the timm model.

    Raises:
        ValueError: for an unknown name, or an argument that the model does not have.
    """

    def __init__(self, name: str, *, drop_path_rate: float | None = None, **arguments) -> None:
        super().__init__()
        if not isinstance(name, str) or not timm.is_model(name):
            raise ValueError(f"name={name!r} is not a model of timm; see timm.list_models()")
        for key in _WEIGHTS:
            if arguments.pop(key, None):
                raise ValueError(
                    f"{key} is not accepted with name={name!r}: weights come from init_cfg=dict(type='Pretrained', "
                    "checkpoint=FILE), with checkpoint='timm' for timm's own"
                )
        if drop_path_rate is not None:
            arguments["drop_path_rate"] = drop_path_rate
        self.name, self.arguments = name, arguments

    def _build(self, **arguments) -> nn.Module:
        try:
            return timm.create_model(self.name, **self.arguments | arguments)
        except (TypeError, ValueError, AssertionError) as error:
            raise ValueError(f"{self.name} cannot be built with {self.arguments}: {in_one_line(error)}") from error

    def _set_model(self, model: nn.Module, with_cp: bool) -> None:
        self.model = model
        if with_cp:
            model.set_grad_checkpointing(True)
        head = "the task's head"  # no pattern matches it, so that its depth is that of everything after the layers
        names = [*model.named_parameters(), (head, None)]
        self._depth = group_with_matcher(names, model.group_matcher(coarse=False), reverse=True)
        self.num_layers = self._depth[head] - 1

    def layer_depth(self, name: str) -> int:
        """Depth of a parameter for layer-wise learning-rate decay, by timm's grouping.

        0 for the embeddings or the stem, i + 1 for block i, num_layers + 1 for the rest.

        Raises:
            AttributeError: if the model has no such parameter.
        """
        self.get_parameter(name)
        inner = name.removeprefix("model.")
        if inner == name:  # the output norms
            return self.num_layers + 1
        return self._depth[inner] if "." in inner else 0  # tokens that timm's pattern misses are embeddings too

    def no_weight_decay(self) -> set[str]:
        """Names that the timm model exempts from weight decay: position embeddings, tokens, bias tables."""
        exempt = getattr(self.model, "no_weight_decay", set)()
        return {f"model.{name}" for name, _ in self.model.named_parameters() if name in exempt}

    def named_as_here(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a file of timm's by the names of this model; those of other files are returned as they are."""
        ours = self.state_dict().keys()
        if state.keys() & ours or not {f"model.{name}" for name in state} & ours:
            return state
        return {f"model.{name}": tensor for name, tensor in state.items()}

    def load(self, path: str | os.PathLike) -> str:
        """Load weights: every tensor of the encoder must be in the file, and the file may hold no other than a head's.

        A head that the file lacks, or has for other classes, keeps its initial values.

        Args:
            path: "timm" for timm's own weights of the model; else a `.pth` or `.safetensors` file of the model in any
                layout that timm reads, or of a model of this toolkit that contains it, a published folder, or a name
                on the hub (hf://OWNER/NAME).

        Returns:
            what was loaded, for the log.

        Raises:
            CheckpointError: if the weights cannot be read or do not fit; the model is unchanged.
        """
        overlay, classes = None, None
        if path != TIMM:
            state = clean_state_dict(model_state(read_checkpoint(path), where=path))
            own = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
            if own:
                _load(self, own, path)
                return f"{len(own)} tensors copied"
            if all(key.startswith("model.") for key in state):  # a classifier of this toolkit
                state = {key.removeprefix("model."): value for key, value in state.items()}
            state = _of_encoder(state)
            heads = [state[f"{head}.weight"] for head in HEADS if f"{head}.weight" in state]
            classes = len(heads[0]) if heads else 0  # as in the file, because timm is strict only then
            overlay = dict(state_dict=state, num_classes=classes, custom_load=False)
        arguments = {key: value for key, value in self.arguments.items() if key != "num_classes"}
        if classes is not None:
            arguments["num_classes"] = classes
        try:
            whole = timm.create_model(self.name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
        except Exception as error:  # noqa: BLE001 filters of unknown layouts raise anything, and so do downloads
            if path == TIMM:
                message = f"timm's weights of {self.name} cannot be had ({in_one_line(error)}); give a file"
            else:
                message = f"{path} does not fit {self.name}: {in_one_line(error)}"
            raise CheckpointError(message) from error
        given, target = whole.state_dict(), self.model.state_dict()
        lost = [key for key in state if key.startswith(HEADS) and key not in given] if classes == 0 else []
        if lost:
            raise CheckpointError(
                f"{path} does not fit {self.name}: it has parts of a head without its last layer ({shorten(lost)}); "
                "give the whole head or none"
            )
        fits = {key for key in given if key in target and given[key].shape[:1] == target[key].shape[:1]}
        new = [key for key in target if key.startswith(HEADS) and key not in fits]
        copied = {key: given[key] for key in target if key not in new}
        _load(self.model, copied | {key: target[key] for key in new}, path)
        kept = f", {len(new)} new ({shorten(new)})" if new else ""
        return f"{len(copied)} tensors copied, {len(given.keys() - copied.keys())} dropped{kept}"


class TimmClassifier(TimmModel):
    """A timm model as a classifier.

    Args:
        name, drop_path_rate, arguments: as in `TimmModel`.
        num_classes: of the head.
        with_cp: recompute blocks in the backward pass, by timm's rules.
    """

    def __init__(self, name: str, *, num_classes: int = 1000, with_cp: bool = False, **arguments) -> None:
        super().__init__(name, num_classes=num_classes, **arguments)
        self.num_classes = num_classes
        self._set_model(self._build(), with_cp)

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> logits (B, num_classes)."""
        check_images(images)
        return self.model(images)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> tokens or map, in timm's form."""
        check_images(images)
        return self.model.forward_features(images)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens or map -> logits (B, num_classes), or what the last layer reads (B, C) if `pre_logits`."""
        return self.model.forward_head(x, pre_logits=pre_logits)


class TimmBackbone(TimmModel):
    """A timm model that maps images of any size to feature maps.

    Each map of a plain model has a LayerNorm of its own, as ARM's have, and so have those of a hierarchical model
    without BatchNorm (Swin and ConvNeXt, as in mmdet and mmseg). The maps of one with BatchNorm are returned as they
    are.

    Args:
        name, drop_path_rate, arguments: as in `TimmModel`; for example img_size, the size of the position table.
        out_indices: entries (from 0) of timm's `feature_info`, which are the blocks of a plain model, that are
            returned. None: of a plain model four blocks by depth (3, 5, 7 and 11 of 12, as in `ARM`); of a
            hierarchical one the last entry of each stride from 4.
        with_cp: recompute blocks in the backward pass, by timm's rules.

    Attributes:
        channels, strides: of each map.

    Raises:
        ValueError: also for a model that returns no maps, or takes images of one size only.
    """

    def __init__(
        self, name: str, *, out_indices: tuple[int, ...] | None = None, with_cp: bool = False, **arguments
    ) -> None:
        if "num_classes" in arguments:
            raise ValueError("num_classes: a backbone has no classes; leave the argument out, or take TimmClassifier")
        super().__init__(name, **arguments)
        self.arguments = _with_any_size(name, self.arguments)
        with torch.device("meta"):
            maps = _maps(self._build(num_classes=0), name, out_indices, arguments.get("in_chans", 3))
        self.out_indices, self.channels, self.strides, self._multiple = maps
        model = self._build(num_classes=0)
        model.prune_intermediate_layers(list(self.out_indices), prune_norm=True, prune_head=True)
        self._set_model(model, with_cp)
        convolutional = self.strides[0] < self.strides[-1] and _has_batch_norm(model)
        self.out_norms = nn.ModuleList(
            nn.Identity() if convolutional else nn.LayerNorm(channels, eps=NORM_EPS) for channels in self.channels
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, in_chans, H, W), any H and W -> (B, channels, ceil(H / stride), ceil(W / stride)) for each map.

        The image is padded with zeros at the right and the bottom to a multiple of the coarsest stride.
        """
        check_images(images)
        height, width = images.shape[2:]
        bottom, right = (_times(size, self._multiple) * self._multiple - size for size in (height, width))
        maps = self.model.forward_intermediates(
            F.pad(images, (0, right, 0, bottom)), indices=list(self.out_indices), **_INTERMEDIATES
        )
        result = []
        for x, norm, stride in zip(maps, self.out_norms, self.strides, strict=True):
            if stride < self._multiple:
                x = _cut(x, _times(height, stride), _times(width, stride))
            if not isinstance(norm, nn.Identity):
                x = norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            result.append(x.contiguous())
        return tuple(result)


def _of_encoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what only pretraining has in the files of MAE and MoCo v3: decoder, momentum encoder and their heads."""
    moco = any(key.startswith("base_encoder.") for key in state)
    skipped = ("momentum_encoder.", "predictor.", "base_encoder.head.") if moco else ("decoder", "mask_token")
    return {key.removeprefix("base_encoder."): value for key, value in state.items() if not key.startswith(skipped)}


def _times(size: int, step: int) -> int:
    """How many steps cover a size; without negative numbers, whose integer division ONNX rounds towards zero."""
    return (size + step - 1) // step


def _cut(x: Tensor, height: int, width: int) -> Tensor:
    """The first rows and columns of maps (B, C, H, W)."""
    if torch.compiler.is_exporting():  # a slice's strides would ask whether anything is cut, and fix the answer
        rows, columns = (torch.arange(size, device=x.device) for size in (height, width))
        return x.index_select(2, rows).index_select(3, columns)
    return x[:, :, :height, :width]


_INTERMEDIATES = dict(stop_early=True, output_fmt="NCHW", intermediates_only=True)


def _with_any_size(name: str, arguments: dict) -> dict:
    """`arguments` and those of `ANY_SIZE` that the model has."""
    with torch.device("meta"):
        try:
            model = model_entrypoint(name)()
        except Exception as error:  # noqa: BLE001 whatever a model of the registry raises
            raise ValueError(f"{name} cannot be built by timm: {in_one_line(error)}") from error
    known = {key for kind in type(model).__mro__ for key in inspect.signature(kind.__init__).parameters}
    return {key: value for key, value in ANY_SIZE.items() if key in known} | arguments


def _maps(
    model: nn.Module, name: str, out_indices: tuple[int, ...] | None, in_chans: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
    """The entries of `feature_info` to return, channels and stride of each map, and what image sizes are padded to.

    Args:
        model: on the meta device.

    Raises:
        ValueError: if the model returns no maps for images of another size than its own.
    """
    info = getattr(model, "feature_info", None)
    if not info or not hasattr(model, "forward_intermediates"):
        raise ValueError(f"{name} returns no feature maps (timm offers no forward_intermediates); take another model")
    reductions = [entry["reduction"] for entry in info]
    if out_indices is None:
        if min(reductions) == max(reductions):
            out_indices = default_out_indices(len(info))
        else:
            last = {stride: i for i, stride in enumerate(reductions) if stride >= 4}
            out_indices = tuple(last.values())
    out_indices = tuple(out_indices)
    if list(out_indices) != sorted({*out_indices} & {*range(len(info))}) or not out_indices:
        raise ValueError(f"out_indices={out_indices!r}: give numbers from 0 to {len(info) - 1} in ascending order")
    multiple = max(reductions)
    size = (8 * multiple, 10 * multiple)
    images = torch.empty(1, in_chans, *size)
    try:
        maps = model.eval().forward_intermediates(images, indices=list(out_indices), **_INTERMEDIATES)
    except Exception as error:  # noqa: BLE001 models with one size fail in many ways
        raise ValueError(f"{name} takes no images of {size[0]} x {size[1]} pixels: {in_one_line(error)}") from error
    strides = tuple(reductions[i] for i in out_indices)
    for x, stride in zip(maps, strides, strict=True):
        if x.ndim != 4 or tuple(x.shape[2:]) != (size[0] // stride, size[1] // stride):
            raise ValueError(f"{name} returns no feature maps: {tuple(x.shape)} where stride {stride} was announced")
    return out_indices, tuple(x.shape[1] for x in maps), strides, multiple


def _load(model: nn.Module, state: dict[str, Tensor], where: str | os.PathLike) -> None:
    target = model.state_dict()
    shapes = [{name: tensor.shape for name, tensor in tensors.items()} for tensors in (target, state)]
    problem = describe_mismatch(*shapes) or describe_values(target, state)
    if problem:
        raise CheckpointError(f"{where} does not fit the model: {problem}; give weights of this model")
    model.load_state_dict(state)


def _has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in model.modules())
