"""Pictures and curves while pretraining runs: reconstructions, and the loss by cluster position."""

import copy
import io
import math

import numpy as np
import torch
from mmengine.dist import broadcast, get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from PIL import Image

from arm_pretrain import ARMPretrainer, ImageCrops

from ..errors import ConfigError
from .reconstruction import draw, load_images


@HOOKS.register_module()
class ReconstructionHook(Hook):
    """Every `interval` epochs, and after the last: what the model predicts, on the same images each time.

    Writes to the visualizer, so to TensorBoard or Weights & Biases if it has them: the picture of
    `tools/reconstruct.py`, and the mean loss of each cluster position as `position/cluster_N`.

    Args:
        path, prefix: of the images, see `ImageCrops`, better some that are not trained on; some of the training images,
            evenly spaced, when None.
        interval: epochs.
        count: images that the losses are means of; rounded down to whole sequences.
        drawn: images in the picture.
        given: true clusters that free-running prediction starts from.
        keep_best: write `best.pth` whenever the mean of the losses is the lowest so far; without the optimizer's state,
            so to finetune from, not to resume from. With a moving average of the weights it holds that, while the
            losses are those of the weights themselves.
    """

    def __init__(
        self,
        path: str | None = None,
        prefix: str | None = None,
        interval: int = 10,
        count: int = 64,
        drawn: int = 4,
        given: int = 3,
        keep_best: bool = False,
    ) -> None:
        if min(interval, count, drawn, given) < 1:
            raise ValueError(
                f"interval={interval}, count={count}, drawn={drawn}, given={given}: give at least 1 of each"
            )
        self.path, self.prefix = path, prefix
        self.interval, self.count, self.drawn, self.given = interval, count, drawn, given
        self.keep_best = keep_best

    def before_train(self, runner) -> None:
        model, dataset = _module(runner), runner.train_dataloader.dataset
        dataset = getattr(dataset, "_dataset", dataset)  # where mmengine slices it for num_batch_per_epoch
        if not isinstance(dataset, ImageCrops):
            raise ConfigError(
                f"ReconstructionHook draws ImageCrops, and train_dataloader.dataset is {type(dataset).__name__}; leave "
                "it out of custom_hooks"
            )
        if self.path is None:
            crops = copy.copy(dataset)
            crops.augment = False
        else:
            try:
                crops = ImageCrops(self.path, self.prefix, dataset.size, augment=False)
            except (OSError, ValueError, ImportError) as error:
                raise ConfigError(f"ReconstructionHook's path: {error}") from None
        per_sequence = model.images_per_sequence
        count = min(self.count, len(crops)) // per_sequence * per_sequence
        if not count:
            raise ConfigError(
                f"ReconstructionHook: {self.path or 'the data set'} has {len(crops)} images and count={self.count}; "
                f"both must be at least the {per_sequence} of a sequence"
            )
        self._images = load_images(model, crops, range(0, len(crops), len(crops) // count)[:count])

    def after_train_epoch(self, runner) -> None:
        if not self.every_n_epochs(runner, self.interval) and not self.is_last_train_epoch(runner):
            return
        model = _module(runner)
        model.eval()
        device = self._images.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)  # of a random order: the same one every time
            # every process computes, as sharded weights need; one writes
            losses = model.losses_by_position(self._images)
            given = min(self.given, len(model.patches))
            picture = draw(model, self._images[: self.drawn], given) if model.predicts_pixels else None
        model.train()
        if get_rank() == 0:
            runner.visualizer.add_scalars({f"position/{name}": x for name, x in losses.items()}, step=runner.iter)
            if picture is not None:
                pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
                runner.visualizer.add_image("reconstruction", pixels, step=runner.iter)
        mean = torch.tensor(sum(losses.values()) / len(losses), dtype=torch.float64, device=device)
        broadcast(mean)  # all must agree, as they write a checkpoint together
        mean = float(mean)
        hub = runner.message_hub  # is in the checkpoints, so a resumed run knows the best so far
        if self.keep_best and mean < (hub.get_info("lowest_loss") if "lowest_loss" in hub.runtime_info else math.inf):
            hub.update_info("lowest_loss", mean)
            runner.save_checkpoint(runner.work_dir, "best.pth", save_optimizer=False, save_param_scheduler=False)
            runner.logger.info(f"best.pth: lowest loss so far, {mean:.4f}")


def _module(runner) -> ARMPretrainer:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
