"""Test-time augmentation of Mask R-CNN: detections in all views are mapped back to the image and merged.

Most tests use a detector that reads its detections off the pixels (a colour channel is a class), so that the merging
has to undo exactly what the real pipeline does to an image. The images are drawn and oblong, and no flip maps an object
to itself.
"""

import json

import cv2
import numpy as np
import pytest
import torch
from mmcv.ops import RoIAlign
from mmdet.evaluation import CocoMetric
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from mmengine.testing import assert_allclose
from torch import nn

from arm_toolkit.engine.config import load_config
from arm_toolkit.errors import ConfigError
from arm_toolkit.models.instance_tta import InstanceTTAModel
from tests.helpers.paths import ROOT
from tests.helpers.small_models import narrow_detector

HEIGHT, WIDTH = 48, 80
META_KEYS = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "flip", "flip_direction")
NO_FLIP = dict(type="RandomFlip", prob=0.0)
FLIPS = {name: dict(type="RandomFlip", prob=1.0, direction=name) for name in ("horizontal", "vertical", "diagonal")}


@pytest.fixture(autouse=True)
def mmdet_scope():
    """Other tests in this process use mmseg, whose transforms have the same names."""
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield


# --------------------------------------------------------------------------------------- views of an image


def views(path, flips=(NO_FLIP,), scales=((WIDTH, HEIGHT),), meta_keys=META_KEYS, img_id=7, **resize):
    """The data loader's batch for one image file: `inputs` and `data_samples`, lists over views of lists of one."""
    resize = dict(type="Resize", keep_ratio=True, interpolation="nearest") | resize
    sizes = [dict(resize, scale=scale) for scale in scales]
    pipeline = Compose(
        [
            dict(type="LoadImageFromFile"),
            dict(
                type="TestTimeAug",
                transforms=[sizes, [dict(f) for f in flips], [dict(type="PackDetInputs", meta_keys=meta_keys)]],
            ),
        ]
    )
    return pseudo_collate([pipeline(dict(img_path=str(path), img_id=img_id))])


def batch(*images):
    """Merge batches of one image into one batch."""
    return {key: [sum(map(list, view), []) for view in zip(*(image[key] for image in images))] for key in images[0]}


def corner(y, x, height, width, size=(HEIGHT, WIDTH)):
    """Boolean mask of a thick letter L, which no flip maps to itself."""
    mask = np.zeros(size, bool)
    mask[y : y + height, x : x + width // 4] = True
    mask[y + height - height // 4 : y + height, x : x + width] = True
    return mask


OBJECTS = [  # (class, brightness, mask); no object is where a flip would put another one
    (0, 250, corner(2, 4, 20, 12)),
    (1, 230, corner(6, 30, 16, 28)),
    (1, 210, corner(26, 58, 20, 20)),
    (2, 190, corner(24, 8, 20, 32)),
]


def draw(path, objects, size=(HEIGHT, WIDTH)):
    image = np.zeros((*size, 3), np.uint8)
    for label, brightness, mask in objects:
        image[mask, label] = brightness
    assert cv2.imwrite(str(path), image)
    return path


@pytest.fixture
def picture(tmp_path):
    return draw(tmp_path / "picture.png", OBJECTS)


# ------------------------------------------------------------------------- a detector that reads the pixels


class Crops(RoIAlign):
    """RoIAlign of 1 where a channel is positive and -1 elsewhere."""

    num_inputs = 1

    def forward(self, features, rois):
        return super().forward((features[0] > 0).float() * 2 - 1, rois)


class PixelRoIHead(StandardRoIHead):
    """Each brightness in channel c is an object of class c, found with brightness / 255 as its score.

    `finds(meta)` decides whether anything is detected in a view.
    """

    def __init__(self):
        super().__init__(test_cfg=ConfigDict(mask_thr_binary=0.5))
        self.finds = lambda meta: True
        self.mask_roi_extractor = Crops((28, 28), sampling_ratio=2)
        self.mask_head = FCNMaskHead(num_convs=0, in_channels=3, conv_out_channels=3, num_classes=3)
        self.mask_head.forward = lambda features: 10 * features

    def predict_bbox(self, x, batch_img_metas, rpn_results_list, rcnn_test_cfg, rescale=False):
        assert rescale
        return [self.read(image, meta) for image, meta in zip(x[0], batch_img_metas)]

    def read(self, image, meta):
        boxes, scores, labels = [], [], []
        for label, channel in enumerate(image):
            for value in channel.unique().tolist() if self.finds(meta) else []:
                if value:
                    y, x = (channel == value).nonzero(as_tuple=True)
                    boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
                    scores.append(value / 255)
                    labels.append(label)
        scale = torch.tensor(meta["scale_factor"]).repeat(2)
        return InstanceData(
            bboxes=torch.tensor(boxes).reshape(-1, 4) / scale,
            scores=torch.tensor(scores),
            labels=torch.tensor(labels, dtype=torch.long),
        )


class PixelDetector(BaseModel):
    with_rpn = True

    def __init__(self):
        super().__init__(dict(type="DetDataPreprocessor", pad_size_divisor=32))
        self.rpn_head = nn.Module()
        self.rpn_head.predict = lambda features, samples, rescale: [InstanceData() for _ in samples]
        self.roi_head = PixelRoIHead()

    def extract_feat(self, inputs):
        return (inputs,)

    def forward(self, inputs, data_samples=None, mode="tensor"):
        raise AssertionError("not needed")


@pytest.fixture
def tta():
    return InstanceTTAModel(PixelDetector())


def assert_finds(sample: DetDataSample, objects, tolerance=0.0):
    """Require exactly these objects, in descending score, boxes within `tolerance` pixels and mask IoU above 0.9."""
    found = sample.pred_instances
    objects = sorted(objects, key=lambda item: -item[1])
    assert found.labels.tolist() == [label for label, *_ in objects]
    assert_allclose(found.scores, torch.tensor([brightness / 255 for _, brightness, _ in objects]))
    assert found.masks.dtype == torch.bool and found.masks.shape == (len(objects), *sample.ori_shape)
    for box, mask, (*_, expected) in zip(found.bboxes, found.masks, objects):
        y, x = np.nonzero(expected)
        corners = torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()
        assert_allclose(box, corners, rtol=0, atol=tolerance + 1e-4)
        expected = torch.from_numpy(expected)
        assert (mask & expected).sum() > 0.9 * (mask | expected).sum()


# ------------------------------------------------------------------------------------------ boxes and masks


@pytest.mark.parametrize(
    "flips",
    [
        [NO_FLIP],
        *([flip] for flip in FLIPS.values()),
        *([NO_FLIP, flip] for flip in FLIPS.values()),
        [NO_FLIP, *FLIPS.values()],
    ],
    ids=lambda flips: "+".join(flip.get("direction", "none") for flip in flips),
)
def test_flips_are_undone(tta, picture, flips):
    (result,) = tta.test_step(views(picture, flips))
    assert_finds(result, OBJECTS)


def test_sizes_and_flips_are_undone_together(tta, picture):
    sizes = [(WIDTH // 2, HEIGHT // 2), (WIDTH, HEIGHT), (3 * WIDTH, 3 * HEIGHT)]
    (result,) = tta.test_step(views(picture, [NO_FLIP, *FLIPS.values()], sizes))
    assert_finds(result, OBJECTS, tolerance=1.0)


def test_width_and_height_may_be_scaled_differently(tta, picture):
    data = views(picture, [NO_FLIP, FLIPS["diagonal"]], [(2 * WIDTH, 3 * HEIGHT)], keep_ratio=False)
    (result,) = tta.test_step(data)
    assert_finds(result, OBJECTS)


def test_images_of_different_sizes_and_flips_in_a_batch(tta, picture, tmp_path):
    other = [(2, 240, corner(40, 3, 20, 12, size=(100, 36)))]
    tall = draw(tmp_path / "tall.png", other, size=(100, 36))
    data = batch(
        views(picture, [FLIPS["horizontal"], NO_FLIP]),
        views(tall, [NO_FLIP, FLIPS["vertical"]], [(36, 100)], img_id=8),
        views(draw(tmp_path / "empty.png", []), [FLIPS["diagonal"], FLIPS["horizontal"]], img_id=9),
    )
    first, second, third = tta.test_step(data)
    assert_finds(first, OBJECTS)
    assert_finds(second, other)
    assert_finds(third, [])
    assert [first.img_id, second.img_id, third.img_id] == [7, 8, 9]


def test_classes_do_not_suppress_each_other(tta, tmp_path):
    mask = corner(6, 30, 16, 28)
    same_place = [(0, 250, mask), (1, 240, mask)]
    (result,) = tta.test_step(views(draw(tmp_path / "two.png", same_place), [NO_FLIP, *FLIPS.values()]))
    assert_finds(result, same_place)


def test_best_instances_are_kept(picture):
    tta = InstanceTTAModel(PixelDetector(), tta_cfg=dict(max_per_img=2))
    (result,) = tta.test_step(views(picture, [NO_FLIP, FLIPS["horizontal"]]))
    assert_finds(result, OBJECTS[:2])


def sample_of(boxes, scores, labels, flip=None):
    sample = DetDataSample(metainfo=dict(ori_shape=(HEIGHT, WIDTH), flip=flip is not None, flip_direction=flip))
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor(boxes).float().reshape(-1, 4), scores=torch.tensor(scores), labels=torch.tensor(labels)
    )
    return sample


def test_boxes_of_views_compete_in_their_class(tta):
    plain = sample_of([[10, 5, 30, 25], [50, 5, 60, 45]], [0.6, 0.9], [0, 0])
    flipped = sample_of([[50, 6, 70, 25], [50, 5, 70, 25], [5, 20, 15, 30]], [0.8, 0.3, 0.2], [0, 1, 0], "horizontal")
    (merged,) = tta.merge_preds([(plain, flipped)])
    found = merged.pred_instances
    assert found.bboxes.tolist() == [[50, 5, 60, 45], [10, 6, 30, 25], [10, 5, 30, 25], [65, 20, 75, 30]]
    assert_allclose(found.scores, torch.tensor([0.9, 0.8, 0.3, 0.2]))
    assert found.labels.tolist() == [0, 0, 1, 0]


def test_nms_is_that_of_the_configuration():
    overlapping = [[0, 0, 10, 10], [0, 0, 10, 8]]  # IoU 0.8
    for threshold, kept in ((0.7, 1), (0.9, 2)):
        tta = InstanceTTAModel(PixelDetector(), tta_cfg=dict(nms=dict(type="nms", iou_threshold=threshold)))
        (merged,) = tta.merge_preds([(sample_of(overlapping, [0.9, 0.8], [0, 0]),)])
        assert len(merged.pred_instances) == kept


def test_masks_are_the_mean_of_all_views(tta, picture):
    """Views that did not detect the object count, too, both for and against a pixel."""
    roi_head, data = tta.module.roi_head, views(picture, [NO_FLIP, *FLIPS.values()])
    roi_head.finds = lambda meta: not meta["flip"]
    for blank, area in ((1, True), (3, False)):  # `blank` of the four views predict empty masks
        seen = iter(range(4))
        roi_head.mask_head.forward = lambda features, seen=seen, blank=blank: (
            torch.full_like(features, -10) if next(seen) < blank else 10 * features
        )
        (result,) = tta.test_step(data)
        assert len(result.pred_instances) == len(OBJECTS)
        assert bool(result.pred_instances.masks.any()) == area


# --------------------------------------------------------------------------------------- nothing found, misuse


@pytest.mark.parametrize("found_in", ["flipped", "plain"])
def test_views_without_detections(tta, picture, found_in):
    tta.module.roi_head.finds = lambda meta: meta["flip"] == (found_in == "flipped")
    (result,) = tta.test_step(views(picture, [NO_FLIP, FLIPS["horizontal"]]))
    assert_finds(result, OBJECTS)


def test_no_detections_at_all(tta, picture):
    tta.module.roi_head.finds = lambda meta: False
    tta.module.roi_head.mask_head.forward = None  # must not be called
    (result,) = tta.test_step(views(picture, [NO_FLIP, FLIPS["horizontal"]]))
    assert_finds(result, [])
    assert result.pred_instances.bboxes.shape == (0, 4)


@pytest.mark.parametrize("order", [[NO_FLIP, FLIPS["vertical"]], [FLIPS["vertical"], NO_FLIP]], ids=["first", "last"])
def test_result_describes_the_unflipped_image(tta, picture, order):
    (result,) = tta.test_step(views(picture, order))
    assert result.img_id == 7 and result.ori_shape == (HEIGHT, WIDTH) and result.img_path == str(picture)
    assert not result.flip


def test_flip_missing_in_meta_keys_is_an_error(tta, picture):
    keys = [key for key in META_KEYS if not key.startswith("flip")]
    with pytest.raises(ConfigError, match="'flip'.*meta_keys of PackDetInputs"):
        tta.test_step(views(picture, [FLIPS["horizontal"]], meta_keys=keys))


def test_unknown_setting_is_an_error():
    with pytest.raises(ConfigError, match="unknown keys iou_thr"):
        InstanceTTAModel(PixelDetector(), tta_cfg=dict(iou_thr=0.5))


@pytest.mark.parametrize("kind", ["roi_head", "detector"])
def test_other_detectors_are_refused(kind):
    class OtherRoIHead(PixelRoIHead):
        def predict_mask(self, *args, **kwargs):
            return super().predict_mask(*args, **kwargs)

    detector = PixelDetector()
    if kind == "roi_head":
        detector.roi_head = OtherRoIHead()
    else:
        del detector.roi_head
    with pytest.raises(ConfigError, match="not OtherRoIHead" if kind == "roi_head" else "not PixelDetector"):
        InstanceTTAModel(detector)


# ---------------------------------------------------------------------------------------------- a Mask R-CNN


def cascade():
    """The ViTDet-style cascade, narrowed."""
    model = narrow_detector(load_config(str(ROOT / "det_configs/cascade_mask_rcnn_arm_b_vitdet.py")).model)
    model.test_cfg.rcnn.max_per_img = 30
    for head in (*model.roi_head.bbox_head, model.roi_head.mask_head):
        head.num_classes = 3
    return model


def mask_rcnn(with_mask=True):
    """The quickstart's detector, narrowed, for 3 classes."""
    model = narrow_detector(load_config(str(ROOT / "det_configs/quickstart_mask_rcnn.py")).model)
    if not with_mask:
        model.type = "FasterRCNN"
        del model.roi_head.mask_roi_extractor, model.roi_head.mask_head
    return model


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """Smoothed noise, so that every place looks different."""
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("tta") / "photo.png"
    cv2.imwrite(str(path), cv2.GaussianBlur(noise, (5, 5), 0))
    return path


def build(photo, module):
    """Build with random weights, rescaled so that outputs differ between places by more than rounding errors."""
    torch.manual_seed(0)
    tta_cfg = dict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=30)
    model = MODELS.build(ConfigDict(type="InstanceTTAModel", tta_cfg=tta_cfg, module=module)).eval()
    roi_head = model.module.roi_head
    heads = roi_head.bbox_head if isinstance(roi_head.bbox_head, nn.ModuleList) else [roi_head.bbox_head]
    for head in heads:
        rescale(head.fc_cls, 2.0, model, photo)
        rescale(head.fc_reg, 1.0, model, photo)
    if roi_head.with_mask:
        masks = roi_head.mask_head if isinstance(roi_head.mask_head, nn.ModuleList) else [roi_head.mask_head]
        for head in masks:
            rescale(head.conv_logits, 3.0, model, photo)
    return model


@torch.no_grad()
def rescale(layer, std, model, photo):
    """Give the layer's outputs mean 0 and standard deviation `std` in each channel, for one image."""
    outputs = []
    handle = layer.register_forward_hook(
        lambda module, inputs, output: outputs.append(output.transpose(0, 1).flatten(1))
    )
    model.test_step(views(photo))
    handle.remove()
    is_std, is_mean = torch.std_mean(torch.cat(outputs, 1), 1)  # (channels,)
    layer.weight.mul_((std / is_std).reshape(-1, *[1] * (layer.weight.ndim - 1)))
    layer.bias.sub_(is_mean).mul_(std / is_std)


@pytest.fixture(scope="module", params=[mask_rcnn, cascade], ids=["Mask R-CNN", "cascade"])
def model(photo, request):
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope("mmdet"):
        return build(photo, request.param())


def assert_same(found: InstanceData, expected: InstanceData):
    assert len(found) == len(expected) > 5
    assert_allclose(found.bboxes, expected.bboxes, atol=1e-2, rtol=0)
    assert_allclose(found.scores, expected.scores, atol=1e-4, rtol=0)
    assert found.labels.tolist() == expected.labels.tolist()
    assert 0.1 < inside(expected) < 0.9, "masks that could not be wrong"
    assert (found.masks != expected.masks).float().mean() < 1e-3


def inside(instances: InstanceData) -> float:
    """The share of the boxes' area that the masks fill."""
    x1, y1, x2, y2 = instances.bboxes.T
    return float(instances.masks.sum() / ((x2 - x1) * (y2 - y1)).sum())


def test_single_view_is_the_plain_prediction(model, photo):
    data = views(photo, scales=[(2 * WIDTH, 2 * HEIGHT)], interpolation="bilinear")
    with torch.no_grad():
        (plain,) = model.module.test_step({key: value[0] for key, value in data.items()})
    plain = plain.pred_instances.clone()
    (result,) = model.test_step(data)
    assert_same(result.pred_instances, plain)


def test_mirrored_image_gives_the_mirrored_prediction(model, photo, tmp_path):
    """The views of an image and of its mirror image are the same, in another order."""
    mirrored = tmp_path / "mirrored.png"
    cv2.imwrite(str(mirrored), cv2.imread(str(photo))[:, ::-1])
    kwargs = dict(
        interpolation="bilinear",
        flips=[NO_FLIP, FLIPS["horizontal"]],
        scales=[(WIDTH, HEIGHT), (2 * WIDTH, 2 * HEIGHT)],
    )
    (image,) = model.test_step(views(photo, **kwargs))
    (mirror,) = model.test_step(views(mirrored, **kwargs))
    flipped = mirror.pred_instances
    x1, y1, x2, y2 = flipped.bboxes.T
    flipped.bboxes = torch.stack([WIDTH - x2, y1, WIDTH - x1, y2], dim=1)
    flipped.masks = flipped.masks.flip(2)
    assert_same(image.pred_instances, flipped)


def test_views_take_part_in_the_result(model, photo):
    """Each view contributes detections to the merged result."""
    (plain,) = model.test_step(views(photo))
    (flip,) = model.test_step(views(photo, [FLIPS["horizontal"]]))
    (both,) = model.test_step(views(photo, [NO_FLIP, FLIPS["horizontal"]]))
    scores = torch.cat([plain.pred_instances.scores, flip.pred_instances.scores])
    for one in (plain, flip):
        assert torch.isin(both.pred_instances.scores, one.pred_instances.scores).any()
    assert torch.isin(both.pred_instances.scores, scores).all()


def test_coco_metric_takes_the_result(model, photo, picture, tta, tmp_path):
    annotations = [
        dict(id=i, image_id=7, category_id=label + 1, iscrowd=0, **outline(mask))
        for i, (label, _, mask) in enumerate(OBJECTS, 1)
    ]
    truth = dict(
        images=[dict(id=7, file_name=picture.name, height=HEIGHT, width=WIDTH)],
        categories=[dict(id=i + 1, name=name) for i, name in enumerate("abc")],
        annotations=annotations,
    )
    ann_file = tmp_path / "truth.json"
    ann_file.write_text(json.dumps(truth))
    data = views(picture, [NO_FLIP, FLIPS["horizontal"]], [(WIDTH, HEIGHT), (2 * WIDTH, 2 * HEIGHT)])

    def evaluate(detector):
        metric = CocoMetric(ann_file=str(ann_file), metric=["bbox", "segm"])
        metric.dataset_meta = dict(classes=tuple("abc"))
        metric.process({}, [sample.to_dict() for sample in detector.test_step(data)])
        return metric.evaluate(size=1)

    right = evaluate(tta)
    assert right["coco/bbox_mAP"] > 0.9 and right["coco/segm_mAP_50"] > 0.9
    assert 0 <= evaluate(model)["coco/segm_mAP"] < 0.5  # random weights: accepted, but wrong
    tta.module.roi_head.finds = lambda meta: False
    assert evaluate(tta) == {}  # what CocoMetric returns for an empty result


def outline(mask):
    y, x = np.nonzero(mask)
    (points,), _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    box = [int(v) for v in (x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min())]
    return dict(bbox=box, area=int(mask.sum()), segmentation=[[int(v) for v in points.flatten()]])


def test_detector_without_masks(photo):
    (result,) = build(photo, mask_rcnn(with_mask=False)).test_step(views(photo, [NO_FLIP, FLIPS["horizontal"]]))
    assert len(result.pred_instances) > 5 and "masks" not in result.pred_instances


@pytest.mark.parametrize("scope", ["mmdet", "mmseg", "mmengine"])
def test_found_from_every_scope(scope):
    with DefaultScope.overwrite_default_scope(scope), MODELS.switch_scope_and_registry(None) as registry:
        assert registry.get("InstanceTTAModel") is InstanceTTAModel
