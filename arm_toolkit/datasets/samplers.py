"""Resumable sampling: the order of images and their augmentation depend on seed, epoch and index only."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS, TRANSFORMS
from torch.utils.data import Dataset, Sampler


class SampleIndex(int):
    """An index into a data set that carries the seed of this draw."""

    seed: int

    def __new__(cls, index: int, seed: int) -> "SampleIndex":
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __getnewargs__(self) -> tuple[int, int]:
        return int(self), self.seed


def mix_seed(*numbers: int) -> int:
    """One 32-bit seed from several numbers, e.g. run seed, epoch and index."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed the global generators of random, numpy and torch (CPU) inside the block, and restore them after it.

    Args:
        seed: None changes nothing.
    """
    if seed is None:
        yield
        return
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed)
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@DATA_SAMPLERS.register_module()
class SeededSampler(Sampler):
    """Distributes one order of images over n processes; the images of a total batch are the same for any n.

    Each process takes every n-th image.

    Args:
        seed: of the run; None draws one that all processes share.
        shuffle: draw a new order every epoch; False keeps the data set's order.
        infinite: continue with the next epoch (iteration-based training); False stops after one epoch, rounded up to
            the same number of images for every process.
    """

    def __init__(self, dataset: Dataset, seed: int | None = None, shuffle: bool = True, infinite: bool = False) -> None:
        self.dataset = dataset
        self.rank, self.world_size = get_dist_info()
        self.seed = sync_random_seed() if seed is None else seed
        self.shuffle, self.infinite = shuffle, infinite
        self.epoch = 0
        self._skipped = 0

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.world_size)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def skip(self, num_samples: int) -> None:
        """Skip the next `num_samples` samples of this process; called on resuming."""
        self._skipped += num_samples

    def _order(self, epoch: int) -> list[int]:
        if not self.shuffle:
            return list(range(len(self.dataset)))
        generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
        return torch.randperm(len(self.dataset), generator=generator).tolist()

    def __iter__(self) -> Iterator[SampleIndex]:
        first, self._skipped = self._skipped, 0
        step, epoch, order = first, -1, []
        while self.infinite or step < len(self):
            ahead, position = divmod(step * self.world_size + self.rank, len(self.dataset))
            if not self.infinite:
                ahead = 0  # the last samples repeat the first ones, so that all processes have the same number
            if self.epoch + ahead != epoch:
                epoch = self.epoch + ahead
                order = self._order(epoch)
            yield SampleIndex(order[position], mix_seed(self.seed, epoch, order[position]))
            step += 1


@DATA_SAMPLERS.register_module()
class SkippableBatches(Sampler):
    """The batches of another batch sampler, without those that a resumed run has done.

    Args:
        sampler, batch_size: those of the data loader.
        batches: configuration of the batch sampler.
    """

    def __init__(self, sampler: Sampler, batch_size: int, batches: dict) -> None:
        self.sampler, self.batch_size = sampler, batch_size
        self.batches = DATA_SAMPLERS.build(batches, default_args=dict(sampler=sampler, batch_size=batch_size))
        self._skipped = 0

    def __len__(self) -> int:
        return len(self.batches)

    def skip(self, num_batches: int) -> None:
        """Skip the next `num_batches` batches of this process; called on resuming."""
        self._skipped += num_batches

    def __iter__(self) -> Iterator[list[int]]:
        first, self._skipped = self._skipped, 0
        yield from islice(self.batches, first, None)


@TRANSFORMS.register_module()
class SeedSample(BaseTransform):
    """Seeds the random transforms that follow it in a training pipeline. It comes first in the pipeline.

    The seed comes from `SeededSampler`; with another sampler nothing is seeded.
    """

    def transform(self, results: dict) -> dict:
        seed = getattr(results.get("sample_idx"), "seed", None)
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)
        return results
