"""The operators that torchvision computes for mmcv follow their definitions, and equal mmcv's compiled ones."""

import importlib
import math
import sys

import pytest
import torch

from arm_toolkit.errors import user_errors
from arm_toolkit.mmcv_ops import _ext

SCALE = 0.25  # of a stride-4 map


def boxes_and_scores(count: int, seed: int, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Integer corners, so that thresholds are met exactly; scores without ties in any float type."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 20, (count, 2), generator=generator)
    size = torch.randint(1, 12, (count, 2), generator=generator)
    scores = torch.randperm(count, generator=generator) / max(1, count)
    return torch.cat([corner, corner + size], 1).to(dtype), scores.to(dtype)


def plain_nms(boxes, scores, threshold: float, offset: int) -> list[int]:
    """NMS by its definition, in exact numbers: an IoU over the threshold, rounded to float32 as mmcv rounds it."""
    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        box = boxes[i].tolist()
        for j in kept:
            other = boxes[j].tolist()
            width = max(0, min(box[2], other[2]) - max(box[0], other[0]) + offset)
            height = max(0, min(box[3], other[3]) - max(box[1], other[1]) + offset)
            areas = [(b[2] - b[0] + offset) * (b[3] - b[1] + offset) for b in (box, other)]
            iou = torch.tensor(width * height) / torch.tensor(sum(areas) - width * height)
            if iou > torch.tensor(threshold):
                break
        else:
            kept.append(i)
    return kept


def compiled():
    """mmcv's compiled operators."""
    importlib.import_module("torch")
    module = importlib.import_module("mmcv._ext")
    if hasattr(module, "MissingOperator"):
        pytest.skip("mmcv is installed without its compiled operators")
    return module


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.6, 0.7, 1.0])
def test_nms_follows_its_definition(threshold, offset):
    for seed in range(20):
        boxes, scores = boxes_and_scores(25, seed)
        assert _ext.nms(boxes, scores, threshold, offset).tolist() == plain_nms(boxes, scores, threshold, offset)


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_equals_the_compiled_one(offset):
    module = compiled()
    for seed in range(50):
        boxes, scores = boxes_and_scores(400, seed)
        boxes += torch.rand(boxes.shape, generator=torch.Generator().manual_seed(seed)) * (seed % 2)
        if seed % 3 == 0:
            scores = scores.mul(10).round()  # equal scores
        for threshold in (0.3, 0.5, 0.6, 0.7):
            ours = _ext.nms(boxes, scores, iou_threshold=threshold, offset=offset)
            assert torch.equal(ours, module.nms(boxes, scores, iou_threshold=threshold, offset=offset))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_nms_of_other_types_equals_that_of_float32(dtype):
    boxes, scores = boxes_and_scores(25, 0, dtype)
    kept = _ext.nms(boxes, scores, 0.5, 0)
    assert kept.dtype == torch.int64
    assert torch.equal(kept, _ext.nms(boxes.float(), scores.float(), 0.5, 0))


def test_nms_of_no_boxes():
    kept = _ext.nms(torch.zeros(0, 4), torch.zeros(0), 0.5, 1)
    assert kept.shape == (0,) and kept.dtype == torch.int64


# ----------------------------------------------------------------------------------------------------- RoIAlign

ROIS = [
    [0, 3.0, 5.0, 40.0, 60.0],
    [1, 10.5, 0.0, 11.0, 33.3],
    [1, -20.0, -8.0, 90.0, 15.0],
    [0, 30.0, 30.0, 30.0, 30.0],
]


def pooled(module, x, rois, ratio: int = 0, aligned: bool = True, size: int = 7, mode: int = 1):
    """`roi_align_forward` as mmcv calls it."""
    output = x.new_zeros(len(rois), x.shape[1], size, size)
    options = dict(aligned_height=size, aligned_width=size, spatial_scale=SCALE, sampling_ratio=ratio)
    module.roi_align_forward(
        x, rois, output, x.new_zeros(0), x.new_zeros(0), pool_mode=mode, aligned=aligned, **options
    )
    return output


def gradient(module, grad, x, rois, ratio: int = 0, aligned: bool = True):
    """`roi_align_backward` as mmcv calls it."""
    result = grad.new_zeros(x.shape)
    options = dict(aligned_height=7, aligned_width=7, spatial_scale=SCALE, sampling_ratio=ratio, pool_mode=1)
    module.roi_align_backward(grad, rois, grad.new_zeros(0), grad.new_zeros(0), result, aligned=aligned, **options)
    return result


def plain_pooled(x, rois, ratio: int, aligned: bool, size: int = 7):
    """RoIAlign by its definition: the mean of bilinear samples, which are 0 more than a pixel outside."""
    height, width = x.shape[2:]
    result = torch.zeros(len(rois), x.shape[1], size, size, dtype=x.dtype)

    def sample(image, row: float, column: float):
        if row < -1 or row > height or column < -1 or column > width:
            return torch.zeros(x.shape[1], dtype=x.dtype)
        row, column = max(row, 0.0), max(column, 0.0)
        top, left = min(int(row), height - 1), min(int(column), width - 1)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        down = row - top if top < height - 1 else 0.0
        across = column - left if left < width - 1 else 0.0
        upper = image[:, top, left] * (1 - across) + image[:, top, right] * across
        lower = image[:, bottom, left] * (1 - across) + image[:, bottom, right] * across
        return upper * (1 - down) + lower * down

    for n, (index, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (corner * SCALE - (0.5 if aligned else 0.0) for corner in corners)
        least = 0.0 if aligned else 1.0
        across, down = max(x2 - x1, least), max(y2 - y1, least)
        columns, rows = ratio or math.ceil(across / size), ratio or math.ceil(down / size)
        for i in range(size):
            for j in range(size):
                points = [
                    sample(
                        x[int(index)],
                        y1 + (i + (a + 0.5) / rows) * down / size,
                        x1 + (j + (b + 0.5) / columns) * across / size,
                    )
                    for a in range(rows)
                    for b in range(columns)
                ]
                result[n, :, i, j] = sum(points) / max(1, len(points)) if points else 0.0
    return result


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 17, 12, generator=generator), torch.tensor(ROIS)


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_follows_its_definition(maps, ratio, aligned):
    x, rois = (part.double() for part in maps)
    torch.testing.assert_close(pooled(_ext, x, rois, ratio, aligned), plain_pooled(x, rois, ratio, aligned))


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_and_its_gradient_equal_the_compiled_ones(maps, ratio, aligned):
    module, (x, rois) = compiled(), maps
    ours, theirs = (pooled(m, x, rois, ratio, aligned) for m in (_ext, module))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = (gradient(m, grad, x, rois, ratio, aligned) for m in (_ext, module))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_roi_align_has_the_gradient_of_its_forward(maps):
    x, rois = (part.double() for part in maps)
    x.requires_grad_()
    grad = torch.randn(4, 3, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (expected,) = torch.autograd.grad(plain_pooled(x, rois, 0, True), x, grad)
    torch.testing.assert_close(gradient(_ext, grad, x, rois), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_roi_align_computes_16_bit_types_in_float32(maps, dtype):
    x, rois = maps[0].to(dtype), maps[1]
    result = pooled(_ext, x, rois)
    assert result.dtype == dtype
    assert torch.equal(result, pooled(_ext, x.float(), rois).to(dtype))
    grad = gradient(_ext, result, x, rois)
    assert grad.dtype == dtype
    assert torch.equal(grad, gradient(_ext, result.float(), x, rois).to(dtype))


def test_roi_align_of_no_regions(maps):
    x, rois = maps[0], torch.zeros(0, 5)
    assert pooled(_ext, x, rois).shape == (0, 3, 7, 7)
    assert not gradient(_ext, torch.zeros(0, 3, 7, 7), x, rois).any()


def test_every_other_operator_says_what_to_do(maps, monkeypatch):
    with pytest.raises(_ext.MissingOperator, match="operator softnms .*bash tools/install.sh --mmcv-ops$"):
        _ext.softnms(torch.zeros(1, 4), method=0)
    with pytest.raises(_ext.MissingOperator, match="operator roi_align with pool_mode='max' .*--mmcv-ops$"):
        pooled(_ext, *maps, mode=0)
    assert _ext.get_compiling_cuda_version() != "" and "torchvision" in _ext.get_compiler_version()
    monkeypatch.setitem(sys.modules, "mmcv._ext", _ext)
    assert issubclass(_ext.MissingOperator, user_errors())  # a tool shows one line
    with pytest.raises(AttributeError):
        _ext.__path__  # noqa: B018
