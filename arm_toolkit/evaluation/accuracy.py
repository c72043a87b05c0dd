"""Top-1 and top-5 accuracy as an mmengine metric."""

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS


@METRICS.register_module()
class Accuracy(BaseMetric):
    """Percentage of images whose label is the most likely class, `top1`, or with over 5 classes among five, `top5`."""

    default_prefix = "accuracy"

    def process(self, data_batch: dict, data_samples: list[torch.Tensor]) -> None:
        for logits, label in zip(data_samples, data_batch["data_samples"], strict=True):
            rank = int((logits > logits[label]).sum())
            self.results.append((rank, len(logits)))

    def compute_metrics(self, results: list[tuple[int, int]]) -> dict[str, float]:
        ranks, classes = np.array(results).T
        metrics = dict(top1=float((ranks == 0).mean() * 100))
        if classes[0] > 5:
            metrics["top5"] = float((ranks < 5).mean() * 100)
        return metrics
