"""Monitors a pretraining run: reconstructions, and the loss by position in the image."""

import copy
import io
import math

import numpy as np
import torch
from mmengine.dist import broadcast, get_rank
from mmengine.hooks import Hook
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.registry import HOOKS
from PIL import Image
from torch import Tensor

from arm_pretrain import ImageCrops
from arm_pretrain.protocol import Reconstructs

from ..errors import ConfigError
from .reconstruction import draw, given_units, load_images

GIVEN = 3  # usual number of true units


@HOOKS.register_module()
class ReconstructionHook(Hook):
    """Shows what the model predicts for some fixed images, every `interval` epochs and after the last one.

    Sends the figure of `tools/reconstruct.py`, and the mean loss of each position as `position/NAME`, to the visualizer
    (TensorBoard, Weights & Biases, or files in the work dir).

    Args:
        path, prefix: images, see `ImageCrops`; preferably not those of training. If `path` is None, training images,
            evenly spaced.
        interval: in epochs.
        count: number of images that the losses are averaged over; rounded down to whole sequences.
        drawn: number of images in the figure.
        given: number of true units that free-running prediction starts from, limited to those of an image. None: 3, or
            none of a model that predicts all at once (MAE).
        keep_best: write `best.pth` whenever the mean of the losses is the lowest so far. It has no optimizer state: use
            it for finetuning, not for resuming. With a moving average of the weights (`WeightEMAHook`) it holds the
            average, although the losses are those of the weights themselves.

    Raises:
        ValueError: if a number is below 1.
        ConfigError: before training, if the model or the data set is not supported, or `path` has no usable images.
    """

    def __init__(
        self,
        path: str | None = None,
        prefix: str | None = None,
        interval: int = 10,
        count: int = 64,
        drawn: int = 4,
        given: int | None = None,
        keep_best: bool = False,
    ) -> None:
        if min(interval, count, drawn, 1 if given is None else given) < 1:
            raise ValueError(
                f"interval={interval}, count={count}, drawn={drawn}, given={given}: give at least 1 of each"
            )
        self.path, self.prefix = path, prefix
        self.interval, self.count, self.drawn, self.given = interval, count, drawn, given
        self.keep_best = keep_best

    def before_train(self, runner) -> None:
        model = _module(runner)
        if not isinstance(model, Reconstructs):
            raise ConfigError(
                f"ReconstructionHook: {type(model).__name__} does not implement arm_pretrain.protocol.Reconstructs; "
                "remove the hook from custom_hooks"
            )
        given_units(model, self.given, GIVEN)  # raises for a number that the model cannot use
        crops = self._crops(runner.train_dataloader.dataset)
        per_sequence = model.images_per_sequence
        count = min(self.count, len(crops)) // per_sequence * per_sequence
        if not count:
            raise ConfigError(
                f"ReconstructionHook: {self.path or 'the data set'} has {len(crops)} images and count={self.count}; "
                f"both must be at least the {per_sequence} of a sequence"
            )
        self._images = load_images(model, crops, range(0, len(crops), len(crops) // count)[:count])

    def _crops(self, dataset) -> ImageCrops:
        """The images to show, without augmentation."""
        dataset = getattr(dataset, "_dataset", dataset)  # mmengine wraps it for num_batch_per_epoch
        if not isinstance(dataset, ImageCrops):
            raise ConfigError(
                "ReconstructionHook needs ImageCrops as train_dataloader.dataset, which is "
                f"{type(dataset).__name__}; remove the hook from custom_hooks"
            )
        if self.path is None:
            crops = copy.copy(dataset)
            crops.augment = False
            return crops
        try:
            return ImageCrops(self.path, self.prefix, dataset.size, augment=False)
        except (OSError, ValueError) as error:
            raise ConfigError(f"ReconstructionHook.path: {error}") from None

    def after_train_epoch(self, runner) -> None:
        if not self.every_n_epochs(runner, self.interval) and not self.is_last_train_epoch(runner):
            return
        losses, figure = self._look(_module(runner))
        if get_rank() == 0:
            runner.visualizer.add_scalars({f"position/{name}": x for name, x in losses.items()}, step=runner.iter)
            if figure is not None:
                pixels = np.asarray(Image.open(io.BytesIO(figure)).convert("RGB"))
                runner.visualizer.add_image("reconstruction", pixels, step=runner.iter)
        mean = torch.tensor(sum(losses.values()) / len(losses), dtype=torch.float64, device=self._images.device)
        broadcast(mean)  # the processes must agree, as they write a checkpoint together
        if self.keep_best:
            _save_if_best(runner, float(mean))

    def _look(self, model: BaseModel) -> tuple[dict[str, float], bytes | None]:
        """Losses by position, and the figure as PNG if the model predicts pixels.

        Leaves the model in training mode, and the random state unchanged. Runs in every process, as sharded weights
        require.
        """
        images: Tensor = self._images
        model.eval()
        with torch.random.fork_rng([images.device] if images.device.type == "cuda" else []):
            torch.manual_seed(0)  # a random order is the same every time
            losses = model.losses_by_position(images)
            figure = None
            if model.predicts_pixels:
                given = given_units(model, self.given, GIVEN)
                given = None if given is None else min(given, model.units_per_image)
                figure = draw(model, images[: self.drawn], given)
        model.train()
        return losses, figure


def _save_if_best(runner, loss: float) -> None:
    hub = runner.message_hub  # saved in checkpoints, so that a resumed run knows the lowest loss
    if loss < (hub.get_info("lowest_loss") if "lowest_loss" in hub.runtime_info else math.inf):
        hub.update_info("lowest_loss", loss)
        runner.save_checkpoint(runner.work_dir, "best.pth", save_optimizer=False, save_param_scheduler=False)
        runner.logger.info(f"best.pth: lowest loss so far, {loss:.4f}")


def _module(runner) -> BaseModel:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
