"""Top-1 and top-5 accuracy as an mmengine metric."""

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS
from torch import Tensor


def ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Number of classes that are placed before the label, 0 for the most likely class, int64 (B,).

    Of equal scores the first class comes first, as in argmax. If any score of an image is not finite, its rank is the
    number of classes: it counts as wrong in any top-k.

    Args:
        scores: (B, classes).
        labels: (B,).
    """
    of_label = scores.gather(1, labels[:, None])  # (B, 1)
    earlier = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    before = (scores > of_label) | ((scores == of_label) & earlier)
    return before.sum(1).masked_fill(~scores.isfinite().all(1), scores.shape[1])


@METRICS.register_module()
class Accuracy(BaseMetric):
    """Percentage of images whose label is the most likely class, `top1`, or with over 5 classes among five, `top5`.

    Ties and scores that are not finite count as in `ranks`; a warning gives the number of images with such scores.
    """

    default_prefix = "accuracy"

    def process(self, data_batch: dict, data_samples: list[Tensor]) -> None:
        for logits, label in zip(data_samples, data_batch["data_samples"], strict=True):
            rank = ranks(logits[None], torch.as_tensor([int(label)], device=logits.device))
            self.results.append((int(rank), len(logits)))

    def compute_metrics(self, results: list[tuple[int, int]]) -> dict[str, float]:
        ranks_of_labels, classes = np.array(results).T
        invalid = int((ranks_of_labels == classes).sum())
        if invalid:
            print_log(f"{invalid} of {len(results)} images have scores that are not finite: wrong", "current", 30)
        metrics = dict(top1=float((ranks_of_labels == 0).mean() * 100))
        if classes[0] > 5:
            metrics["top5"] = float((ranks_of_labels < 5).mean() * 100)
        return metrics
