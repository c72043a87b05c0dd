"""Evaluates an ImageNet classifier on the robustness sets of `datasets.imagenet_sets`.

Legend: B batch, H, W pixels.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from mmengine.utils import ProgressBar
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import model_entrypoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from arm_backbone.checkpoint.accounting import Accounting
from arm_backbone.checkpoint.files import CheckpointError, model_state, read_checkpoint
from arm_backbone.checkpoint.load import load_trunk
from arm_backbone.classifier import ARMClassifier
from arm_backbone.timm_models import default_cfgs
from arm_backbone.vmamba_classifier import VMambaClassifier
from arm_images.errors import DataError

from ..datasets.imagenet_sets import NUM_CLASSES, ROBUSTNESS, TITLES, ImageNetSet, SetNotFound, open_set
from ..errors import ConfigError, one_line
from ..tables import markdown_table


def load_classifier(
    checkpoint: str, model_name: str, global_pool: str | None = None, cls_token: str | None = None
) -> tuple[ARMClassifier | VMambaClassifier, Accounting]:
    """Build a classifier of the 1000 ImageNet classes and load all its weights.

    Args:
        checkpoint: file of any kind that contains a classifier.
        model_name: a name of `arm_backbone.timm_models`.
        global_pool: "avg" or "token"; None: the model's own.
        cls_token: "middle", "tail" or "none"; None: the model's own.

    Returns:
        the model, and what became of every tensor of the file.

    Raises:
        ConfigError: for an unknown name, or what the model does not have.
        CheckpointError: if the file cannot be read or does not fit, or contains no classifier of 1000 classes.
    """
    if model_name not in default_cfgs:
        raise ConfigError(f"--model {model_name} is unknown; give one of {', '.join(default_cfgs)}")
    options = {"global_pool": global_pool, "cls_token": cls_token}
    options = {key: value for key, value in options.items() if value is not None}
    said = "".join(f" --{key.replace('_', '-')} {value}" for key, value in options.items())
    try:
        model = model_entrypoint(model_name)(**options)
    except (TypeError, ValueError) as error:  # VMamba has no class token
        raise ConfigError(f"--model {model_name}{said}: {one_line(error)}") from None
    state = model_state(read_checkpoint(checkpoint), where=checkpoint)
    head = state.get("head.weight")
    if head is not None and len(head) != NUM_CLASSES:
        raise CheckpointError(
            f"{checkpoint} has {len(head)} classes, the sets need the {NUM_CLASSES} of ImageNet-1k; give a classifier "
            "of these"
        )
    try:
        accounting = load_trunk(model, state, checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"--model {model_name}{said}: {error}") from None
    if any(name.startswith(("head.", "norm.")) for name in accounting.new):
        raise CheckpointError(f"{checkpoint} has no classifier; give a checkpoint finetuned on ImageNet-1k")
    if "cls_token" in accounting.new:
        raise CheckpointError(f"{checkpoint} has no class token; give --cls-token none")
    return model, accounting


def eval_transform(model: nn.Module, keep_ratio: bool = False) -> Callable[[Image.Image], Tensor]:
    """timm's test preprocessing for a model.

    Args:
        keep_ratio: resize the short side to size / crop_pct; False does what the model's authors do: for ARM squash the
            image to a square of that side, for Vim and VMamba resize the short side. All crop the centre.
    """
    return create_transform(**resolve_data_config(dict(crop_mode="center") if keep_ratio else {}, model=model))


def open_sets(
    names: Sequence[str] | None,
    root: str | Path,
    transform: Callable[[Image.Image], Tensor],
    val: str | Path | None = None,
) -> dict[str, ImageNetSet | None]:
    """Open several sets; warns about missing and incomplete ones.

    Args:
        names: keys of `TITLES`, all required to exist; None opens those of `ROBUSTNESS` that exist.
        root, transform, val: see `open_set`.

    Returns:
        the sets by name, None for one that does not exist.

    Raises:
        DataError: see `open_set`; also if `root` contains none of the sets.
    """
    sets: dict[str, ImageNetSet | None] = {}
    for name in dict.fromkeys(names or ROBUSTNESS):
        try:
            sets[name] = open_set(name, root, transform, val)
        except SetNotFound as error:
            if names:
                raise
            sets[name] = None
            print(f"not found: {error}", file=sys.stderr)
    if not any(sets.values()):
        raise DataError(f"--data {root} contains none of the sets; give the folder that does (see --help)")
    for name, dataset in sets.items():
        if dataset is not None and len(dataset) != dataset.published:
            print(
                f"warning: {TITLES[name]} has {len(dataset)} of {dataset.published} images here; its accuracy is not "
                "comparable with published ones",
                file=sys.stderr,
            )
    return sets


@torch.inference_mode()
def top1(
    dataset: ImageNetSet,
    logits_of: Callable[[Tensor], Tensor],
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> float:
    """Percentage of images whose most likely class, among those of the set, is a correct one.

    An image with logits that are not finite counts as wrong.

    Args:
        logits_of: from images (B, 3, H, W) on `device` to logits (B, 1000).
        progress: show a progress bar on stderr.

    Raises:
        ConfigError: if the number of logits is not 1000.
        DataError: for an image that cannot be decoded.
    """
    classes = torch.tensor(dataset.classes)
    if progress:
        print(f"{TITLES[dataset.name]}, {len(dataset)} images", file=sys.stderr)
        bar = ProgressBar(len(dataset), file=sys.stderr)
    hits = 0
    try:
        for images, correct in DataLoader(dataset, batch_size, num_workers=workers):
            logits = logits_of(images.to(device)).cpu()
            if logits.shape[1] != NUM_CLASSES:
                raise ConfigError(
                    f"the model has {logits.shape[1]} classes, {TITLES[dataset.name]} needs the {NUM_CLASSES} of "
                    "ImageNet-1k; give a classifier of these"
                )
            predicted = classes[logits[:, classes].argmax(1)]  # (B,)
            right = correct.gather(1, predicted[:, None]).bool() & logits.isfinite().all(1, keepdim=True)
            hits += int(right.sum())
            if progress:
                bar.update(len(images))
    finally:
        if progress:
            print(file=sys.stderr)  # the bar leaves its line open
    return 100 * hits / len(dataset)


def results_table(results: dict[str, dict | None]) -> str:
    """Markdown table of `dict(images=..., top1=...)` by set name, None for a set that was not found."""
    rows = [
        (TITLES[name], row["images"], f"{row['top1']:.1f}") if row else (TITLES[name], "not found", "")
        for name, row in results.items()
    ]
    return markdown_table(["set", "images", "top-1 (%)"], rows, "lrr")
