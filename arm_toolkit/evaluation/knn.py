"""k-nearest-neighbour classification on a frozen encoder's features (the weighted vote of DINO's evaluation).

Legend: N images, C features.
"""

import torch
import torch.nn.functional as F
from mmengine.utils import ProgressBar
from torch import Tensor
from torch.utils.data import DataLoader

from arm_backbone.classifier import ARMClassifier


@torch.inference_mode()
def extract_features(model: ARMClassifier, loader: DataLoader, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pooled features of unit length (N, C), and labels (N,), on the CPU."""
    features, labels = [], []
    progress = ProgressBar(len(loader))
    for batch in loader:
        tokens = model.forward_features(batch["inputs"].to(device))
        features.append(F.normalize(model.forward_head(tokens, pre_logits=True).float(), dim=1).cpu())
        labels.append(batch["data_samples"])
        progress.update()
    return torch.cat(features), torch.cat(labels)


def vote(train: Tensor, train_labels: Tensor, queries: Tensor, k: int, temperature: float, chunk: int = 1024) -> Tensor:
    """Weights of the classes among each query's k nearest training features.

    Args:
        train, queries: (N, C) of unit length.
        temperature: of the weights, exp(similarity / temperature).
        chunk: queries compared at once.

    Returns:
        (N, classes).
    """
    classes = int(train_labels.max()) + 1
    votes = []
    for part in queries.split(chunk):
        similarity, nearest = (part @ train.T).topk(min(k, len(train)), dim=1)
        weights = torch.exp((similarity - 1) / temperature)  # 1 is the largest: no overflow
        votes.append(torch.zeros(len(part), classes).scatter_add_(1, train_labels[nearest], weights))
    return torch.cat(votes)
