"""Test-time augmentation of instance segmentation: merges the predictions for several sizes and flips of an image.

mmdet's DetTTAModel merges boxes only. Here masks are merged too, after the boxes, as in Detectron2's
GeneralizedRCNNWithTTA and Mask R-CNN's `aug_test` in mmdet 2.x:

1. Detect boxes in each view separately, map them all back to the image, and run one NMS per class over all of them.
2. Map each remaining box into every view and predict its mask there. Flip the mask probabilities back, average them
   over the views, then paste and threshold the mean once.

So all views contribute to the mask of the same box before anything is rounded to pixels. The alternative is a vote over
the finished masks of overlapping detections. It needs an overlap threshold, blurs boxes that differ, and uses only the
views that detected the object. It would not save time: here, too, each view's features are computed once. They are kept
(about 0.15 GB for a view of 1667 x 1000 and an FPN of 256 float32 channels).

StandardRoIHead (Mask R-CNN) and CascadeRoIHead (Cascade Mask R-CNN, whose mask heads of all stages are averaged) are
supported; heads that compute masks differently (hybrid task cascades, PointRend, Mask Scoring) are refused.

Legend: n instances, C classes of the mask head, h, w its output size, H, W the original image.
"""

from typing import Any, NamedTuple

import torch
from mmcv.ops import batched_nms
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi, bbox_flip
from mmengine.model import BaseTTAModel
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..errors import ConfigError

FLIP_DIMS = {"horizontal": (-1,), "vertical": (-2,), "diagonal": (-2, -1)}  # of (..., h, w)


class View(NamedTuple):
    """One augmentation of a batch of images."""

    features: tuple[Tensor, ...]  # one (images, channels, height, width) per level
    metas: list[dict]  # of each image: ori_shape, scale_factor, flip, flip_direction


def flip_boxes(boxes: Tensor, meta: dict) -> Tensor:
    """Flip boxes as their view is flipped. The same call flips them back.

    Args:
        boxes: `(n, 4)`, x1, y1, x2, y2 in pixels of the original image.
        meta: the view's `flip`, `flip_direction` and `ori_shape` (H, W).

    Raises:
        ConfigError: if the view's metainfo lacks the flip.
    """
    if "flip" not in meta:
        raise ConfigError(
            f"tta_pipeline: the metainfo of a view has no 'flip' (only {', '.join(sorted(meta))}): add RandomFlip to "
            "TestTimeAug (prob=0.0 for no flip), and 'flip' and 'flip_direction' to meta_keys of PackDetInputs"
        )
    return bbox_flip(boxes, meta["ori_shape"], meta["flip_direction"]) if meta["flip"] else boxes


def image_to_view(boxes: Tensor, meta: dict) -> Tensor:
    """Map boxes `(n, 4)` from pixels of the original image to pixels of the view: flip, then resize."""
    return flip_boxes(boxes, meta) * boxes.new_tensor(meta["scale_factor"]).repeat(2)  # (w, h, w, h)


def flip_masks(masks: Tensor, meta: dict) -> Tensor:
    """Flip masks `(..., h, w)` as their view is flipped. The same call flips them back."""
    return masks.flip(FLIP_DIMS[meta["flip_direction"]]) if meta["flip"] else masks


@MODELS.register_module()
class InstanceTTAModel(BaseTTAModel):
    """Mask R-CNN, Faster R-CNN or their cascades, whose predictions are merged over augmented views of each image.

    Args:
        module: a two-stage detector with a StandardRoIHead or CascadeRoIHead, or its configuration.
        tta_cfg: `nms`, applied to the boxes of all views together (in the form of the detector's `test_cfg.rcnn`);
            `max_per_img`, the number of instances kept per image.
        data_preprocessor: replaces that of `module`, if `module` is a configuration.

    Raises:
        ConfigError: if `tta_cfg` has other keys, or for another kind of detector.
    """

    def __init__(
        self,
        module: dict | nn.Module,
        tta_cfg: dict | None = None,
        data_preprocessor: dict | nn.Module | None = None,
    ) -> None:
        super().__init__(module, data_preprocessor)
        cfg = dict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=100)
        unknown = set(tta_cfg or {}) - set(cfg)
        if unknown:
            raise ConfigError(f"tta_cfg has unknown keys {', '.join(sorted(unknown))}; it takes {', '.join(cfg)}")
        self.tta_cfg = cfg | dict(tta_cfg or {})
        head = getattr(self.module, "roi_head", None)
        supported = any(
            isinstance(head, kind)
            and all(getattr(type(head), name) is getattr(kind, name) for name in ("predict", "predict_mask"))
            for kind in (StandardRoIHead, CascadeRoIHead)
        )
        if not supported or not getattr(self.module, "with_rpn", False):
            name = type(self.module).__name__ if head is None else type(head).__name__
            raise ConfigError(
                "tta_model: InstanceTTAModel supports detectors with an RPN and a StandardRoIHead or CascadeRoIHead "
                f"(Mask R-CNN, Cascade Mask R-CNN), not {name}; test this model without --tta"
            )

    @torch.no_grad()
    def test_step(self, data: dict[str, list]) -> list[DetDataSample]:
        """Predict a batch of augmented images.

        Args:
            data: `inputs` and `data_samples`, each a list over views of lists over images (from TestTimeAug and
                pseudo_collate).

        Returns:
            for each image the data sample of its first unflipped view, with `pred_instances` in pixels of the
            original image, in descending score: `bboxes (n, 4)`, `scores (n,)`, `labels (n,)`, `masks (n, H, W)` bool.
        """
        views, samples = [], []
        for values in zip(*data.values(), strict=True):
            view, detected = self.detect(dict(zip(data, values)))
            views.append(view)
            samples.append(detected)
        merged = self.merge_preds(list(zip(*samples)))
        if self.module.roi_head.with_mask:
            self.add_masks(views, merged)
        return merged

    def detect(self, data: dict[str, list]) -> tuple[View, list[DetDataSample]]:
        """Detect boxes in one view of a batch.

        Returns:
            the view, and for each image a data sample with boxes in pixels of the original image, still flipped (as
            mmdet predicts them).
        """
        batch: dict[str, Any] = self.module.data_preprocessor(data, False)
        samples = batch["data_samples"]
        view = View(self.module.extract_feat(batch["inputs"]), [sample.metainfo for sample in samples])
        proposals = self.module.rpn_head.predict(view.features, samples, rescale=False)
        roi_head = self.module.roi_head
        results = roi_head.predict_bbox(view.features, view.metas, proposals, roi_head.test_cfg, rescale=True)
        for sample, instances in zip(samples, results, strict=True):
            sample.pred_instances = instances
        return view, samples

    def merge_preds(self, data_samples_list: list[tuple[DetDataSample, ...]]) -> list[DetDataSample]:
        """Merge the boxes of each image.

        Args:
            data_samples_list: for each image its data sample of every view, from `detect`.

        Returns:
            for each image one of its data samples, with merged boxes, scores and labels but no masks.
        """
        return [self.merge_boxes(samples) for samples in data_samples_list]

    def merge_boxes(self, samples: tuple[DetDataSample, ...]) -> DetDataSample:
        """`merge_preds` for one image."""
        found = [sample.pred_instances for sample in samples]
        boxes = torch.cat([flip_boxes(view.bboxes.float(), sample.metainfo) for view, sample in zip(found, samples)])
        scores = torch.cat([view.scores.float() for view in found])
        labels = torch.cat([view.labels for view in found])
        finite = boxes.isfinite().all(1) & scores.isfinite()  # NMS would keep a NaN score above all others
        boxes, scores, labels = boxes[finite], scores[finite], labels[finite]
        if len(boxes):  # batched_nms fails without boxes
            boxes_scores, keep = batched_nms(boxes, scores, labels, self.tta_cfg["nms"])  # (n, 5), (n,)
            boxes, scores, labels = boxes_scores[:, :4], boxes_scores[:, 4], labels[keep]
        best = slice(self.tta_cfg["max_per_img"])
        merged = min(samples, key=lambda sample: bool(sample.flip))  # the first unflipped one, if any
        merged.pred_instances = InstanceData(bboxes=boxes[best], scores=scores[best], labels=labels[best])
        return merged

    def add_masks(self, views: list[View], samples: list[DetDataSample]) -> None:
        """Predict the masks of each image's merged boxes, averaged over the views, in place."""
        roi_head = self.module.roi_head
        instances = [sample.pred_instances for sample in samples]
        boxes = [of_image.bboxes for of_image in instances]
        counts = [len(of_image) for of_image in boxes]
        logits = [of_image.new_zeros(0, 1, 1, 1) for of_image in boxes]
        if sum(counts):
            probs = sum(self.mask_probs(view, boxes) for view in views) / len(views)  # (n of all images, C, h, w)
            logits = probs.logit().split(counts)  # the head applies the sigmoid
        _mask_stages(roi_head)[-1][1].predict_by_feat(
            mask_preds=logits,
            results_list=instances,
            batch_img_metas=[dict(ori_shape=sample.ori_shape, scale_factor=(1.0, 1.0)) for sample in samples],
            rcnn_test_cfg=roi_head.test_cfg,
            rescale=True,
        )

    def mask_probs(self, view: View, boxes: list[Tensor]) -> Tensor:
        """Mask probabilities `(n of all images, C, h, w)` of the given boxes, predicted in one view and flipped back.

        Args:
            boxes: for each image `(n, 4)` in pixels of the original image.
        """
        roi_head = self.module.roi_head
        rois = bbox2roi([image_to_view(of_image, meta) for of_image, meta in zip(boxes, view.metas)])  # (n, 5)
        stages = _mask_stages(roi_head)
        probs = 0
        for extractor, head in stages:
            features = extractor(view.features[: extractor.num_inputs], rois)
            if roi_head.with_shared_head:
                features = roi_head.shared_head(features)
            probs = probs + head(features).float().sigmoid() / len(stages)
        probs = probs.split([len(of_image) for of_image in boxes])
        return torch.cat([flip_masks(of_image, meta) for of_image, meta in zip(probs, view.metas)])


def _mask_stages(roi_head: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """RoI extractor and mask head of each stage of a cascade, or of the only stage."""
    extractors, heads = roi_head.mask_roi_extractor, roi_head.mask_head
    if isinstance(heads, nn.ModuleList):
        return list(zip(extractors, heads, strict=True))
    return [(extractors, heads)]
