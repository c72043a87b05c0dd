"""bfloat16 in tools/test.py and in predictions: equal to each other, and to autocast with float32 weights."""

import pickle

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from PIL import Image

from arm_toolkit.engine.precision import compute_in_bfloat16
from arm_toolkit.errors import ConfigError
from arm_toolkit.inference import load
from tests.helpers.small_models import ARCH, VMAMBA_ARCH
from tests.helpers.tools import invoke

pytestmark = pytest.mark.xdist_group("inference")


def run_test_py(task: str, models: dict, tmp_path):
    out = tmp_path / ("labels" if task == "seg" else "results.pkl")
    arguments = models[task].with_suffix(".py"), models[task], "--out", out, "--work-dir", tmp_path / "work"
    done = invoke("test.py", *arguments, "--dtype", "bfloat16")
    assert done.returncode == 0, done.stderr
    return out


def test_detections_are_those_of_test_py(models, images, tmp_path):
    expected = pickle.loads(run_test_py("det", models, tmp_path).read_bytes())
    predictor, exact = load(models["det"], dtype="bfloat16"), load(models["det"])
    differences = []
    for sample in expected:
        found, scores = predictor(sample["img_path"]), sample["pred_instances"]["scores"]
        assert len(found) > 3 and np.array_equal(found.scores, scores) and found.scores.dtype == np.float32
        differences.append(abs(found.scores[:3] - exact(sample["img_path"]).scores[:3]).max())
    assert 0 < max(differences) < 0.02


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
    with torch.autocast("cpu", torch.bfloat16):
        expected = model.test_step(batch)
    exact, before = model.test_step(batch), size(model)
    compute_in_bfloat16(model)
    for found, wanted, other in zip(model.test_step(batch), expected, exact, strict=True):
        assert torch.equal(found, wanted) and not torch.equal(found, other)
    assert size(model) < 0.75 * before


def size(model: torch.nn.Module) -> int:
    return sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())


def test_an_unknown_precision_is_refused(models):
    with pytest.raises(ConfigError, match="dtype 'float16': give 'float32' or 'bfloat16'"):
        load(models["cls"], dtype="float16")
