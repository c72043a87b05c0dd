"""Evaluates a classifier on ImageNet's robustness sets."""

import argparse
import sys
from collections.abc import Callable

import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import model_entrypoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from arm_backbone.checkpoint.accounting import Accounting
from arm_backbone.checkpoint.files import CheckpointError, model_state, read_checkpoint
from arm_backbone.checkpoint.load import load_trunk
from arm_backbone.classifier import ARMClassifier
from arm_images.errors import DataError

from ..datasets.imagenet_sets import NUM_CLASSES, ROBUSTNESS, TITLES, ImageNetSet, SetNotFound, open_set
from ..errors import ConfigError


def eval_transform(model: nn.Module, keep_ratio: bool = False) -> Callable[[Image.Image], Tensor]:
    """timm's preprocessing of a model, for tests.

    Args:
        keep_ratio: resize the short side to size / crop_pct, instead of squashing the picture to that square as the
            reference code does; the centre is cropped in both cases.
    """
    crop_mode = "center" if keep_ratio else "squash"
    return create_transform(**resolve_data_config(dict(crop_mode=crop_mode), model=model))


@torch.inference_mode()
def top1(
    dataset: ImageNetSet,
    logits_of: Callable[[Tensor], Tensor],
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> float:
    """Percentage of pictures whose most likely class, among those of the set, is right.

    Args:
        logits_of: from images (B, 3, H, W) on `device` to logits (B, 1000).
        progress: show a line on stderr.

    Raises:
        ConfigError: if there are other than 1000 logits.
        DataError: for a file that cannot be decoded.
    """
    classes = torch.tensor(dataset.classes)
    seen = correct = 0
    try:
        for images, right in DataLoader(dataset, batch_size, num_workers=workers):
            logits = logits_of(images.to(device)).cpu()
            if logits.shape[1] != NUM_CLASSES:
                raise ConfigError(
                    f"the model has {logits.shape[1]} classes, {TITLES[dataset.name]} needs the {NUM_CLASSES} of "
                    "ImageNet-1k; give a classifier of these"
                )
            predicted = classes[logits[:, classes].argmax(1)]  # (B,)
            correct += int(right.gather(1, predicted[:, None]).sum())
            seen += len(images)
            if progress:
                print(f"\r{TITLES[dataset.name]}: {seen} of {len(dataset)} images", end="", file=sys.stderr, flush=True)
    finally:
        if progress and seen:
            print(file=sys.stderr)
    return 100 * correct / seen


def load_model(args: argparse.Namespace) -> tuple[ARMClassifier, Accounting]:
    """The model with all its weights from the checkpoint, and their account."""
    cls_token = None if args.cls_token == "none" else args.cls_token
    # timm.create_model leaves out arguments that are None
    model = model_entrypoint(args.model)(global_pool=args.global_pool, cls_token=cls_token)
    state = model_state(read_checkpoint(args.checkpoint))
    head = state.get("head.weight")
    if head is not None and len(head) != NUM_CLASSES:
        raise CheckpointError(
            f"{args.checkpoint} has {len(head)} classes, the sets need the {NUM_CLASSES} of ImageNet-1k; give a "
            "classifier of these"
        )
    try:
        accounting = load_trunk(model, state, args.checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"--model {args.model} --cls-token {args.cls_token}: {error}") from None
    if any(name.startswith(("head.", "norm.")) for name in accounting.new):
        raise CheckpointError(f"{args.checkpoint} has no classifier; give a checkpoint finetuned on ImageNet-1k")
    if "cls_token" in accounting.new:
        raise CheckpointError(f"{args.checkpoint} has no class token; give --cls-token none")
    return model, accounting


def open_sets(args: argparse.Namespace, model: ARMClassifier) -> dict[str, ImageNetSet | None]:
    """The sets by name; None for one that is not there and was not asked for."""
    sets = {}
    for name in dict.fromkeys(args.sets or ROBUSTNESS):
        try:
            sets[name] = open_set(name, args.data, eval_transform(model, args.keep_ratio), args.val)
        except SetNotFound as error:
            if args.sets:
                raise
            sets[name] = None
            print(f"not found: {error}", file=sys.stderr)
    if not any(sets.values()):
        raise DataError(f"--data {args.data} holds none of the sets; give the folder that does (see --help)")
    for name, dataset in sets.items():
        if dataset is not None and len(dataset) != dataset.published:
            print(
                f"warning: {TITLES[name]} has {len(dataset)} of {dataset.published} images here: its number does not "
                "compare with published ones",
                file=sys.stderr,
            )
    return sets


def markdown(table: dict[str, dict | None]) -> str:
    lines = ["| set | images | top-1 (%) |", "| --- | ---: | ---: |"]
    for name, row in table.items():
        cells = (row["images"], f"{row['top1']:.1f}") if row else ("not found", "")
        lines.append(f"| {TITLES[name]} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)
