"""Test-time augmentation of instance segmentation: one image at several sizes and flips, one result.

mmdet's DetTTAModel merges boxes only. Masks are merged here in the way of Detectron2's GeneralizedRCNNWithTTA
(and of Mask R-CNN's `aug_test` in mmdet 2.x), boxes first:

1. every view is detected alone; its boxes are brought back to the image, and all of them together go
   through one NMS in each class;
2. each box that is left is carried into every view, the mask head looks at it there, and the mean of the
   flipped-back mask probabilities is pasted into the image and thresholded, once.

So all views have a say in the mask of one and the same box, before anything is rounded to a pixel. The
alternative, a vote of the finished binary masks of overlapping detections, needs an overlap threshold of
its own, blurs boxes that differ, and hears only the views that found the object. It would save nothing
here: all that is needed is public in mmdet 3.x for a StandardRoIHead (Mask R-CNN), and the features of a
view are computed once and kept (about 0.15 GB for a view of 1667 x 1000 in an FPN of 256 float32 channels).
Heads that make masks in another way (cascades, PointRend, Mask Scoring) are refused.

Shapes: `n` instances, `C` classes of the mask head, `h, w` its output size, `H, W` the original image.
"""

from typing import Any, NamedTuple

import torch
from mmcv.ops import batched_nms
from mmdet.models.roi_heads import StandardRoIHead
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

    features: tuple[Tensor, ...]  # levels of (images, channels, height, width)
    metas: list[dict]  # an image's ori_shape, scale_factor, flip, flip_direction


def flip_boxes(boxes: Tensor, meta: dict) -> Tensor:
    """The flip of a view, which is its own inverse, applied to boxes.

    Args:
        boxes: `(n, 4)`, x1, y1, x2, y2 in pixels of the original image.
        meta: the view's `flip`, `flip_direction` and `ori_shape` (H, W).

    Raises:
        ConfigError: if the view does not say how it was flipped.
    """
    if "flip" not in meta:
        raise ConfigError(
            f"tta_pipeline: the metainfo of a view has no 'flip' (only {', '.join(sorted(meta))}): put RandomFlip into "
            "TestTimeAug (prob=0.0 for none), and 'flip' and 'flip_direction' into meta_keys of PackDetInputs"
        )
    return bbox_flip(boxes, meta["ori_shape"], meta["flip_direction"]) if meta["flip"] else boxes


def image_to_view(boxes: Tensor, meta: dict) -> Tensor:
    """Boxes `(n, 4)` in pixels of the original image, to pixels of the view: flipped, then resized."""
    return flip_boxes(boxes, meta) * boxes.new_tensor(meta["scale_factor"]).repeat(2)  # (w, h, w, h)


def flip_masks(masks: Tensor, meta: dict) -> Tensor:
    """The flip of a view, which is its own inverse, applied to masks `(..., h, w)`."""
    return masks.flip(FLIP_DIMS[meta["flip_direction"]]) if meta["flip"] else masks


@MODELS.register_module()
class InstanceTTAModel(BaseTTAModel):
    """Mask R-CNN (or Faster R-CNN) with its predictions merged over augmented views of each image.

    Args:
        module: the detector, or its configuration: two stages, with a StandardRoIHead.
        tta_cfg: `nms`, as in the detector's `test_cfg.rcnn`, applied to the boxes of all views together;
            `max_per_img`, how many instances of an image are kept.
        data_preprocessor: replaces that of a `module` given as a configuration.

    Raises:
        ConfigError: if `tta_cfg` has other keys, or the detector makes its masks in another way.
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
            raise ConfigError(f"tta_cfg: nothing reads {', '.join(sorted(unknown))}; its keys are {', '.join(cfg)}")
        self.tta_cfg = cfg | dict(tta_cfg or {})
        head = getattr(self.module, "roi_head", None)
        standard = isinstance(head, StandardRoIHead) and all(
            getattr(type(head), name) is getattr(StandardRoIHead, name) for name in ("predict", "predict_mask")
        )
        if not standard or not getattr(self.module, "with_rpn", False):
            name = type(self.module).__name__ if head is None else type(head).__name__
            raise ConfigError(
                "tta_model: InstanceTTAModel merges what an RPN and a StandardRoIHead predict (Mask R-CNN), "
                f"not {name}; test this model without --tta"
            )

    @torch.no_grad()
    def test_step(self, data: dict[str, list]) -> list[DetDataSample]:
        """Predict a batch of augmented images.

        Args:
            data: `inputs` and `data_samples`, each a list over views of lists over images (TestTimeAug, then
                pseudo_collate).

        Returns:
            for each image the data sample of its first unflipped view, with `pred_instances` in pixels of the
            original image, best first: `bboxes (n, 4)`, `scores (n,)`, `labels (n,)`, `masks (n, H, W)` bool.
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
        """Boxes of one view.

        Returns:
            the view; for each image a data sample with boxes in pixels of the original image, still flipped (as
            from mmdet's own prediction).
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
            data_samples_list: for each image its views, with boxes in pixels of the original image, still flipped.

        Returns:
            for each image one of its data samples, with the merged boxes, scores and labels, without masks.
        """
        return [self.merge_boxes(samples) for samples in data_samples_list]

    def merge_boxes(self, samples: tuple[DetDataSample, ...]) -> DetDataSample:
        """`merge_preds` for one image."""
        found = [sample.pred_instances for sample in samples]
        boxes = torch.cat([flip_boxes(view.bboxes.float(), sample.metainfo) for view, sample in zip(found, samples)])
        scores = torch.cat([view.scores.float() for view in found])
        labels = torch.cat([view.labels for view in found])
        if len(boxes):  # batched_nms takes a maximum
            boxes_scores, keep = batched_nms(boxes, scores, labels, self.tta_cfg["nms"])  # (n, 5), (n,)
            boxes, scores, labels = boxes_scores[:, :4], boxes_scores[:, 4], labels[keep]
        best = slice(self.tta_cfg["max_per_img"])
        merged = min(samples, key=lambda sample: bool(sample.flip))  # the first unflipped one, if there is any
        merged.pred_instances = InstanceData(bboxes=boxes[best], scores=scores[best], labels=labels[best])
        return merged

    def add_masks(self, views: list[View], samples: list[DetDataSample]) -> None:
        """Give the merged boxes of each image the masks on which the views agree, in place."""
        roi_head = self.module.roi_head
        instances = [sample.pred_instances for sample in samples]
        boxes = [of_image.bboxes for of_image in instances]
        counts = [len(of_image) for of_image in boxes]
        logits = [of_image.new_zeros(0, 1, 1, 1) for of_image in boxes]
        if sum(counts):
            probs = sum(self.mask_probs(view, boxes) for view in views) / len(views)  # (n of all images, C, h, w)
            logits = probs.logit().split(counts)  # the head takes the sigmoid
        roi_head.mask_head.predict_by_feat(
            mask_preds=logits,
            results_list=instances,
            batch_img_metas=[dict(ori_shape=sample.ori_shape, scale_factor=(1.0, 1.0)) for sample in samples],
            rcnn_test_cfg=roi_head.test_cfg,
            rescale=True,
        )

    def mask_probs(self, view: View, boxes: list[Tensor]) -> Tensor:
        """Probabilities `(n of all images, C, h, w)` in boxes of the original images, seen in a view, flipped back."""
        roi_head, extractor = self.module.roi_head, self.module.roi_head.mask_roi_extractor
        rois = bbox2roi([image_to_view(of_image, meta) for of_image, meta in zip(boxes, view.metas)])  # (n, 5)
        features = extractor(view.features[: extractor.num_inputs], rois)
        if roi_head.with_shared_head:
            features = roi_head.shared_head(features)
        probs = roi_head.mask_head(features).float().sigmoid().split([len(of_image) for of_image in boxes])
        return torch.cat([flip_masks(of_image, meta) for of_image, meta in zip(probs, view.metas)])
