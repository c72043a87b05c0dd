"""k-nearest-neighbour classification with a frozen encoder's features, by the weighted vote of DINO's evaluation.

Legend: B batch, N images, C features.
"""

import copy

import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.runner import Runner
from mmengine.utils import ProgressBar
from torch import Tensor
from torch.utils.data import DataLoader

from arm_backbone.checkpoint.files import CheckpointError
from arm_backbone.openmmlab import Classifier

from .accuracy import ranks


def knn_accuracy(model: Classifier, dataloader: ConfigDict, k: int, temperature: float) -> float:
    """Top-1 accuracy in percent of the test images, each classified by its k nearest training images.

    Args:
        model: on its device, in evaluation mode.
        dataloader: configuration of the test images' loader; its data set is a ClassFolder.
        k, temperature: see `vote`.
    """
    dataset = dataloader.dataset
    data = []
    for split in (dataset.get("classes_from", "train"), dataset.split):
        of_split = copy.deepcopy(dataloader)
        of_split.dataset.split = split
        loader = Runner.build_dataloader(of_split)
        print(f"{split}: {len(loader.dataset)} images")
        data.append(extract_features(model, loader))
    (train, train_labels), (queries, labels) = data
    return top1(vote(train, train_labels, queries, k, temperature), labels)


def top1(votes: Tensor, labels: Tensor) -> float:
    """Percentage of queries whose label has most votes; votes that are not finite are wrong.

    Args:
        votes: (N, classes).
        labels: (N,); one that no training image has is wrong.
    """
    missing = int(labels.max()) + 1 - votes.shape[1]
    if missing > 0:
        votes = F.pad(votes, (0, missing))
    return (ranks(votes, labels) == 0).float().mean().item() * 100


@torch.inference_mode()
def extract_features(model: Classifier, loader: DataLoader) -> tuple[Tensor, Tensor]:
    """Pooled features of unit length (N, C), and labels (N,), on the CPU; shows a progress bar."""
    device = next(model.parameters()).device
    features, labels = [], []
    progress = ProgressBar(len(loader))
    for batch in loader:
        tokens = model.forward_features(batch["inputs"].to(device))
        features.append(F.normalize(model.forward_head(tokens, pre_logits=True).float(), dim=1).cpu())
        labels.append(batch["data_samples"])
        progress.update()
    print()  # the bar leaves its line open
    return torch.cat(features), torch.cat(labels)


def vote(train: Tensor, train_labels: Tensor, queries: Tensor, k: int, temperature: float, chunk: int = 1024) -> Tensor:
    """Sum of the weights exp(similarity / temperature) of each class among a query's k nearest training features.

    Args:
        train, queries: (N, C) of unit length.
        train_labels: (N,).
        chunk: queries per matrix product.

    Returns:
        (N, classes), each row up to a factor; NaN for a query whose features are not finite.

    Raises:
        CheckpointError: if training features are not finite.
    """
    bad = int((~train.isfinite().all(1)).sum())
    if bad:
        raise CheckpointError(
            f"the features of {bad} of {len(train)} training images are not finite: the encoder has diverged; give "
            "another checkpoint"
        )
    classes = int(train_labels.max()) + 1
    votes = []
    for part in queries.split(chunk):
        similarity, nearest = (part @ train.T).topk(min(k, len(train)), dim=1)
        # relative to the nearest, which comes first: at a low temperature all weights would be 0
        weights = torch.exp((similarity - similarity[:, :1]) / temperature)
        of_part = torch.zeros(len(part), classes).scatter_add_(1, train_labels[nearest], weights)
        votes.append(of_part.masked_fill_(~part.isfinite().all(1, keepdim=True), torch.nan))
    return torch.cat(votes)
