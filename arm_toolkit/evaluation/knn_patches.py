"""k-nearest-neighbour segmentation with a frozen encoder's patch features: nothing is trained or tuned.

Each patch of the test images gets the weighted vote of its nearest patches among all training images (see `knn.vote`);
the votes are interpolated to pixels, as a segmentor's logits are. This is a coarse segmentation: what is smaller than a
patch is mostly lost, with every encoder.

Legend: h x w patches, H x W pixels, K classes, C features.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.utils import ProgressBar
from mmseg.evaluation import IoUMetric
from mmseg.models import EncoderDecoder
from mmseg.structures import SegDataSample
from torch import Tensor
from torch.utils.data import DataLoader

from arm_backbone.checkpoint.errors import CheckpointError

from ..datasets.label_maps import IGNORED
from ..datasets.transforms import checked_loading
from ..errors import ConfigError
from ..machine import total_memory
from .knn import vote


@torch.inference_mode()
def knn_iou(model: EncoderDecoder, cfg: Config, k: int, temperature: float) -> np.ndarray:
    """IoU of each class in percent, (K,); nan for a class that does not occur.

    Args:
        model: on its device, in evaluation mode; of its parts only preprocessor and backbone are used, whose last map
            is the features.
        cfg: its configuration; training images are read without augmentation, as test images are.
        k, temperature: see `knn.vote`.

    Raises:
        CheckpointError: if features are not finite.
        ConfigError: if the training images have too many patches for the memory.
    """
    features, labels = [], []
    loader = _loader(cfg, train=True)
    for inputs, sample in _samples(model, loader):
        patches = patch_features(model, inputs)
        if not features:
            _require_memory(len(loader.dataset) * patches.numel() * 4)
        shares = class_shares(_padded_labels(sample, covered(inputs, patches)), patches.shape[:2])
        known = shares.sum(-1) >= 0.5  # of the patch's pixels
        features.append(patches[known])
        labels.append(shares.argmax(-1)[known])
    bank, bank_labels = torch.cat(features), torch.cat(labels)
    areas = []
    for inputs, sample in _samples(model, _loader(cfg, train=False)):
        patches = patch_features(model, inputs)
        votes = vote(bank, bank_labels, patches.flatten(0, 1), k, temperature, chunk=256)
        votes = votes / votes.sum(1, keepdim=True)
        found = _to_pixels(votes, patches.shape[:2], sample, covered(inputs, patches))
        truth = sample.gt_sem_seg.data[0].cpu()
        areas.append(IoUMetric.intersect_and_union(found, truth, model.num_classes, IGNORED))
    totals = [sum(parts) for parts in zip(*areas, strict=True)]
    return IoUMetric.total_area_to_metrics(*totals, metrics=["mIoU"])["IoU"] * 100


def _require_memory(needed: int) -> None:
    """Refuse features of so many bytes if they would take more than half of the memory; similarities need the rest."""
    total = total_memory(torch.device("cpu"))
    if needed > total / 2:
        raise ConfigError(
            f"all training patches would take {needed / 2**30:.0f} GiB of {total / 2**30:.0f} GiB; take fewer "
            "images: train_dataloader.dataset.indices=1000"
        )


def _loader(cfg: Config, train: bool) -> DataLoader:
    """Images one by one with the test pipeline, in order."""
    loader = cfg.test_dataloader.copy()
    if train:
        loader.dataset = cfg.train_dataloader.dataset.copy()
        loader.dataset.pipeline = cfg.test_dataloader.dataset.pipeline
    loader.update(batch_size=1, sampler=dict(type="DefaultSampler", shuffle=False))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return Runner.build_dataloader(checked_loading(loader, cfg.default_scope))


def _samples(model: EncoderDecoder, loader: DataLoader) -> Iterator[tuple[Tensor, SegDataSample]]:
    """Preprocessed images (1, 3, H, W) with their samples; shows a progress bar."""
    progress = ProgressBar(len(loader))
    for batch in loader:
        data = model.data_preprocessor(batch, False)
        yield data["inputs"], data["data_samples"][0]
        progress.update()
    print()  # the bar leaves its line open


def patch_features(model: EncoderDecoder, inputs: Tensor) -> Tensor:
    """The last map of the backbone for one image, (h, w, C) of unit length on the CPU.

    Raises:
        CheckpointError: if it is not finite.
    """
    patches = F.normalize(model.backbone(inputs)[-1][0].permute(1, 2, 0).float(), dim=-1).cpu()
    if not patches.isfinite().all():
        raise CheckpointError("features are not finite: the encoder has diverged; give another checkpoint")
    return patches


def covered(inputs: Tensor, patches: Tensor) -> tuple[int, int]:
    """Height and width in pixels of all patches together; the last ones may reach beyond the image.

    The stride is found from the counts; at stride 14 that is exact if a side has at least 183 pixels.
    """
    stride = max(-(-size // count) for size, count in zip(inputs.shape[-2:], patches.shape[:2], strict=True))
    return tuple(count * stride for count in patches.shape[:2])


def class_shares(labels: Tensor, grid: tuple[int, int]) -> Tensor:
    """The share of each class in the pixels of each patch.

    Args:
        labels: (H, W) class numbers, `IGNORED` where there is none; H and W are multiples of the grid's.
        grid: h, w.

    Returns:
        (h, w, K), K the largest class number + 1; the sum over classes is the labelled share.
    """
    known = labels != IGNORED
    one_hot = F.one_hot(torch.where(known, labels, 0).long()) * known[..., None]
    return F.adaptive_avg_pool2d(one_hot.permute(2, 0, 1).float(), grid).permute(1, 2, 0)


def _padded_labels(sample: SegDataSample, size: tuple[int, int]) -> Tensor:
    """The truth in the pixels of the image padded to this size, (H, W)."""
    truth = sample.gt_sem_seg.data[None].float().cpu()
    resized = F.interpolate(truth, size=sample.img_shape[:2], mode="nearest")[0, 0]
    height, width = size
    return F.pad(resized, (0, width - resized.shape[1], 0, height - resized.shape[0]), value=IGNORED)


def _to_pixels(votes: Tensor, grid: tuple[int, int], sample: SegDataSample, size: tuple[int, int]) -> Tensor:
    """Votes (h * w, K) on an image of this size -> class numbers of the original image's pixels."""
    maps = F.interpolate(votes.T.unflatten(1, grid)[None], size=size, mode="bilinear")
    height, width = sample.img_shape[:2]
    return F.interpolate(maps[..., :height, :width], size=sample.ori_shape[:2], mode="bilinear")[0].argmax(0)
