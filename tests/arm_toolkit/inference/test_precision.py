"""bfloat16 in tools/test.py and in predictions: equal to each other, and to autocast with float32 weights."""

import copy
import pickle

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from PIL import Image

from arm_toolkit.engine.arguments import DTYPES
from arm_toolkit.engine.config import load_config
from arm_toolkit.engine.precision import (
    Float32Linear,
    _prediction_layers,
    bfloat16_autocast,
    prepare_for_bfloat16,
)
from arm_toolkit.errors import ConfigError
from arm_toolkit.inference import load
from tests.helpers.published import CLASSES, config_of
from tests.helpers.small_models import ARCH, VMAMBA_ARCH
from tests.helpers.tools import invoke
from tests.helpers.untrained import write_checkpoint

pytestmark = pytest.mark.xdist_group("inference")


def run_test_py(task: str, models: dict, tmp_path, *options: str):
    out = tmp_path / ("labels" if task == "seg" else "results.pkl")
    arguments = models[task].with_suffix(".py"), models[task], "--out", out, "--work-dir", tmp_path / "work"
    done = invoke("test.py", *arguments, "--dtype", "bfloat16", *options)
    assert done.returncode == 0, done.stderr
    return out


def test_detections_are_those_of_test_py(models, images, tmp_path):
    expected = pickle.loads(run_test_py("det", models, tmp_path).read_bytes())
    predictor, exact = load(models["det"], dtype="bfloat16"), load(models["det"])
    differences = []
    for sample in expected:
        found, scores = predictor(sample["img_path"]), sample["pred_instances"]["scores"]
        assert len(found) > 3 and np.array_equal(found.scores, scores) and found.scores.dtype == np.float32
        assert len(set(found.scores)) > 0.9 * len(found)  # bfloat16 has many ties
        differences.append(abs(found.scores[:3] - exact(sample["img_path"]).scores[:3]).max())
    assert 0 < max(differences) < 0.02


@pytest.mark.slow
def test_test_time_augmentation_of_instances(models, images, shapes, tmp_path):
    """Its wrapper calls parts of the detector, not `test_step`."""
    cfg = config_of("det", shapes)
    cfg.tta_model = dict(
        type="InstanceTTAModel", tta_cfg=dict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=100)
    )
    sizes = [dict(type="Resize", scale=(edge, edge), keep_ratio=True) for edge in (64, 96)]
    flips = [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)]
    meta = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "flip", "flip_direction")
    last = [dict(type="PackDetInputs", meta_keys=meta)]
    cfg.tta_pipeline = [dict(type="LoadImageFromFile"), dict(type="TestTimeAug", transforms=[sizes, flips, last])]
    cfg.custom_imports.imports = [*cfg.custom_imports.imports, "arm_toolkit.models.instance_tta"]
    cfg.model.pop("init_cfg", None)
    cfg.dump(tmp_path / "det.py")
    given = dict(det=write_checkpoint(load_config(str(tmp_path / "det.py")), tmp_path / "det.pth", CLASSES["det"]))
    expected = pickle.loads(run_test_py("det", given, tmp_path, "--tta").read_bytes())
    predictor, exact = (load(given["det"], tta=True, dtype=dtype) for dtype in DTYPES[::-1])
    for sample in expected:
        found, scores = predictor(sample["img_path"]), sample["pred_instances"]["scores"]
        assert len(found) > 3 and np.array_equal(found.scores, scores)
        assert 0 < abs(found.scores[:3] - exact(sample["img_path"]).scores[:3]).max() < 0.02


def test_label_maps_are_those_of_test_py(models, images, tmp_path):
    labels = run_test_py("seg", models, tmp_path)
    predictor, exact = load(models["seg"], dtype="bfloat16"), load(models["seg"])
    same = []
    for path in images:
        found, wanted = predictor(path), exact(path)
        stored = np.asarray(Image.open(labels / f"{path.stem}.png"))
        assert np.array_equal(found.labels + predictor.reduce_zero_label, stored)
        assert len(np.unique(found.scores.round(3))) > 100  # probabilities from float32 logits
        same.append((found.labels == wanted.labels).mean())
        assert not np.array_equal(found.scores, wanted.scores)
    assert np.mean(same) > 0.98


def test_probabilities_of_a_classifier(models, images):
    predictor, exact = load(models["cls"], dtype="bfloat16"), load(models["cls"])
    for path in images:
        difference = abs(predictor(path).scores - exact(path).scores).max()
        assert 0 < difference < 0.02
    copied = copy.deepcopy(predictor)
    for weight in copied.model.parameters():
        weight.data.zero_()
    assert abs(copied(images[0]).scores - 1 / len(predictor.classes)).max() < 1e-6  # it runs its own weights


def replaced(predictor, change) -> None:
    """Prepare a changed copy of a predictor's model."""
    model = copy.deepcopy(predictor.model)
    change(model)
    prepare_for_bfloat16(model)


def test_heads_that_would_round_are_refused(models):
    def plain_rpn(model) -> None:
        model.rpn_head.__class__ = model.rpn_head.__class__.__mro__[1]

    def plain_extractor(model) -> None:
        model.roi_head.mask_roi_extractor.__class__ = model.roi_head.mask_roi_extractor.__class__.__mro__[1]

    detector, segmentor = load(models["det"]), load(models["seg"])
    message = "would round boxes; use float32, or a detector with Float32RPNHead and Float32RoIExtractor"
    for change, found in ((plain_rpn, "has RPNHead"), (plain_extractor, "has SingleRoIExtractor")):
        with pytest.raises(ConfigError, match=f"--dtype bfloat16: MaskRCNN {found}, which {message}"):
            replaced(detector, change)
    with pytest.raises(ConfigError, match=f"MaskRCNN has no rpn_head, which {message}"):
        replaced(detector, lambda model: delattr(model, "rpn_head"))
    with pytest.raises(ConfigError, match="--dtype bfloat16: model.decode_head is UPerHead, whose scores"):
        replaced(segmentor, lambda model: delattr(model.decode_head, "conv_seg"))


ENCODERS = {
    "ARM": dict(type="ARMClassifier", arch=ARCH, num_classes=10),
    "Vim": dict(type="VimClassifier", arch=ARCH, num_classes=10),
    "VMamba": dict(type="VMambaClassifier", arch=VMAMBA_ARCH, num_classes=10),
    "DeiT": dict(type="TimmClassifier", name="deit_tiny_patch16_224", img_size=64, depth=2, num_classes=10),
}


@pytest.mark.parametrize("encoder", ENCODERS)
@torch.no_grad()
def test_weights_that_are_converted_once_change_nothing(encoder):
    torch.manual_seed(0)
    model = MODELS.build(ENCODERS[encoder]).eval()
    for parameter in model.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    batch = dict(inputs=torch.randn(2, 3, 64, 64))
    exact, before = model.test_step(batch), size(model)
    for layer in _prediction_layers(model):
        layer.__class__ = Float32Linear
    with bfloat16_autocast(model):
        expected = model.test_step(batch)
    prepare_for_bfloat16(model)
    with bfloat16_autocast(model):
        found = model.test_step(batch)
    for result, wanted, other in zip(found, expected, exact, strict=True):
        assert torch.equal(result, wanted) and not torch.equal(result, other)
        assert not torch.equal(result, result.bfloat16().float())
    assert size(model) < 0.8 * before


def size(model: torch.nn.Module) -> int:
    return sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())


def test_an_unknown_precision_is_refused(models):
    with pytest.raises(ConfigError, match="dtype 'float16': give 'float32' or 'bfloat16'"):
        load(models["cls"], dtype="float16")
