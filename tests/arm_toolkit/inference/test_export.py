"""Exported files run without this toolkit and compute what the model computes, for images of any size."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS

from arm_toolkit.engine.config import load_config
from arm_toolkit.inference import export_check
from arm_toolkit.inference.build import build
from arm_toolkit.inference.export_parts import Segment
from arm_toolkit.inference.export_pooling import AnySizePooling
from tests.helpers.documents import blocks, commands
from tests.helpers.paths import ROOT
from tests.helpers.published import publish_small, save_checkpoint
from tests.helpers.tools import invoke

onnx = pytest.importorskip("onnx", reason="onnx is not installed (tools/versions.txt, [export])")
onnx_reference = pytest.importorskip("onnx.reference")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (tools/versions.txt, [export])")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (tools/versions.txt, [export])")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    """A checkpoint with random weights: one block, because most of the time goes into recording blocks."""
    cfg = load_config(str(ROOT / "cls_configs/quickstart_arm.py"))
    cfg.model.update(arch=dict(embed_dims=32, num_layers=1), img_size=64, init_cfg=None)
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("classifier") / "model.pth"
    names = dict(classes=("disc", "square", "triangle"))
    meta = dict(cfg=cfg.pretty_text, dataset_meta=names)
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict(), meta=meta), file)
    return file


@pytest.fixture(scope="module")
def segmentor(tmp_path_factory, shapes) -> Path:
    return save_checkpoint("seg", shapes, tmp_path_factory.mktemp("segmentor") / "model.pth")


@pytest.fixture(scope="module")
def detector(tmp_path_factory, shapes) -> Path:
    return save_checkpoint("det", shapes, tmp_path_factory.mktemp("detector") / "model.pth")


def export(*arguments, cwd: Path | None = None) -> str:
    done = invoke("export.py", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_classifier_as_onnx(classifier, shapes, tmp_path):
    """One file is run at other sizes than the one it was recorded at, and says what its input must be."""
    file = tmp_path / "model.onnx"
    said = export(classifier, file, "--images", shapes / "coco/val2017")
    assert "same top-1 class of all 4" in said and "on images 2 x 64 x 64, 1 x 52 x 88, 1 x 80 x 96" in said
    model = onnx.load(file)
    assert {entry.domain for entry in model.opset_import} == {""} and not model.functions
    assert str(ROOT) not in str(model)  # no paths of this machine
    about = json.loads({entry.key: entry.value for entry in model.metadata_props}["export.json"])
    assert about["task"] == "classification" and about["input"]["channels"] == "RGB"
    assert about["input"]["mean"] == pytest.approx([123.675, 116.28, 103.53]) and len(about["classes"]) == 3
    images = np.random.default_rng(0).standard_normal((3, 3, 80, 49)).astype(np.float32)
    (logits,) = onnxruntime.InferenceSession(file).run(None, dict(images=images))
    (reference,) = onnx_reference.ReferenceEvaluator(model).run(None, dict(images=images))  # another runtime
    assert logits.shape == (3, 3) and np.abs(logits - reference).max() < 1e-5 * np.abs(logits).max()


class Poolings(torch.nn.Module):
    """Those of UperNet, of the pyramid, and of mmdet's FPN."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        half = F.max_pool2d(x, 2, 2, ceil_mode=True)
        return F.adaptive_avg_pool2d(x, 3), F.adaptive_avg_pool2d(x, (1, 2)), half, F.max_pool2d(half, 1, stride=2)


def test_pooling_of_maps_of_any_size():
    """Sizes that divide, and sizes that do not, in one program."""
    module, any_size = Poolings(), dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    with AnySizePooling():
        program = torch.export.export(module, (torch.zeros(2, 3, 12, 12),), dynamic_shapes=(any_size,)).module()
    for size in ((2, 3, 12, 12), (1, 3, 5, 7), (1, 3, 9, 14), (3, 3, 8, 10)):
        x = torch.randn(size)
        torch.testing.assert_close(program(x), module(x))


def test_wrong_arguments_and_files(classifier, tmp_path, monkeypatch):
    """One line each; an earlier file is kept."""
    file = tmp_path / "model.onnx"
    file.write_text("earlier")
    pairs = [
        ((classifier, tmp_path / "model.pb"), "model.pb: its ending says the format; give FILE.onnx or FILE.pt2"),
        ((classifier, file, "--ops", "arm"), "--ops arm: a .onnx file takes standard or ort"),
        ((classifier, file, "--img-size", "0"), "--img-size 0: give one side, or height and width"),
        ((classifier, file, "--part", "pyramid"), "--part pyramid: a ARMClassifier has no such part"),
        (("arm_tiny_patch16_224", file, "--checkpoint", tmp_path / "no.pth"), "no.pth does not exist"),
        (("arm_none", file), "arm_none does not exist"),
        ((classifier, file, "--images", tmp_path / "no.jpg"), "no.jpg cannot be read"),
    ]
    monkeypatch.setattr(export_check, "TOLERANCE", 0.0)
    pairs.append(((classifier, file, "--img-size", "64"), "model.onnx is not kept, because onnxruntime"))
    for arguments, message in pairs:
        done = invoke("export.py", *arguments)
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1 or "warn" in done.stderr.lower()
    assert file.read_text() == "earlier" and sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


# ------------------------------------------------------------------------------------------------ slow: every kind

ALONE = """
import sys
sys.modules["arm_backbone"] = sys.modules["arm_toolkit"] = None  # not to be imported
import json, numpy as np
file, images, out = sys.argv[1:]
images = np.load(images)
if file.endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(file)
    about = session.get_modelmeta().custom_metadata_map["export.json"]
    values = session.run(None, dict(images=images))
else:
    import torch
    extra = dict.fromkeys(["export.json"], "")
    program = torch.export.load(file, extra_files=extra).module()
    about = extra["export.json"]
    with torch.no_grad():
        values = [value.numpy() for value in program(torch.from_numpy(images))]
names = json.loads(about)["outputs"]
np.savez(out, **dict(zip(names, values, strict=True)))
"""


def run_alone(file: Path, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Run a file in another process, in which the toolkit cannot be imported."""
    inputs, out = file.with_suffix(".npy"), file.with_suffix(".npz")
    np.save(inputs, images.numpy())
    command = [sys.executable, "-c", ALONE, str(file), str(inputs), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=file.parent)
    assert done.returncode == 0, done.stderr
    with np.load(out) as found:
        return {name: torch.from_numpy(found[name]) for name in found}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ort.onnx", "standard.pt2"])
def test_classifier_alone(classifier, shapes, tmp_path, name):
    """In a process without the toolkit."""
    file, images = tmp_path / name, torch.randn(3, 3, 70, 101)
    assert "same top-1 class of all 4" in export(classifier, file, "--ops", file.stem, "--images", shapes / "coco")
    with torch.no_grad():
        expected = build(classifier)[0](images)
    torch.testing.assert_close(run_alone(file, images)["logits"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_documented_commands(segmentor, classifier, detector, photographs, tmp_path, monkeypatch):
    """README and docs/export.md, as written, with small models. The files run without the toolkit."""
    (tmp_path / "IMAGES").symlink_to(photographs / "camvid/images/validation")
    for source, name in ((segmentor, "mine/iter_400.pth"), (detector, "mask_rcnn_arm_b/epoch_36.pth")):
        path = tmp_path / "work_dirs" / name
        path.parent.mkdir(parents=True)
        path.symlink_to(source)
    monkeypatch.chdir(tmp_path)
    document = ROOT / "docs/export.md"
    run = [words for words in commands(document) if words[1:2] == ["tools/export.py"]]
    assert len(run) == 3 and run[0] in commands(ROOT / "README.md")
    images = torch.randn(2, 3, 70, 101)

    said = export(*run[0][2:])
    assert "same label of all" in said and "3 images" in said
    model = build(segmentor)[0]
    with torch.no_grad():
        labels, logits = Segment(model)(images)
        assert torch.equal(model.predict(images)[1].pred_sem_seg.data[0], labels[1])  # mmseg's own
    found = run_alone(tmp_path / "mine.onnx", images)
    assert torch.equal(found["labels"], labels)
    torch.testing.assert_close(found["logits"], logits, rtol=1e-4, atol=1e-4)

    assert "output map4" in export(*run[2][2:])
    maps = run_alone(tmp_path / "mask_rcnn.pt2", images)
    assert [level.shape[2:] for level in maps.values()] == [(20, 28), (10, 14), (5, 7), (3, 4), (2, 2)]

    export(classifier, "model.onnx", "--img-size", "224")
    (tmp_path / "image.jpg").symlink_to(next((tmp_path / "IMAGES").iterdir()))
    variables: dict = {}
    exec(blocks(document, "python")[0], variables)
    assert variables["logits"].shape == (1, 3)


@pytest.mark.slow
def test_pixels_and_our_operators(segmentor, photographs, tmp_path):
    images = photographs / "camvid/images/validation"
    file = tmp_path / "pixels.pt2"
    said = export(segmentor, file, "--pixels", "--ops", "arm", "--img-size", "64", "96", "--images", images)
    assert "uint8, RGB" in said and "same label of all" in said and "on images 2 x 64 x 96" in said
    operators = {str(node.target) for node in torch.export.load(file).graph.nodes}
    assert {"arm.cross_conv.default", "arm.cross_scan.default"} <= operators
    timed = invoke("benchmark.py", "exported", segmentor, file, "--img-size", "64x96", "--seconds", "0")
    assert timed.returncode == 2 and "pixels.pt2" in timed.stderr


@pytest.mark.slow
def test_published_backbone(shapes, tmp_path):
    published = publish_small("backbone", shapes, tmp_path / "backbone")
    file = tmp_path / "model.pt2"
    assert "output features" in export(published.folder, file, "--img-size", "64", "--ops", "arm")
    timed = invoke("benchmark.py", "exported", published.folder, file, "--img-size", "64", "--seconds", "0")
    assert timed.returncode == 0 and "model.pt2" in timed.stdout, timed.stderr


def test_heads_of_a_detector_are_refused(detector, tmp_path):
    done = invoke("export.py", detector, tmp_path / "model.onnx", "--part", "model")
    assert done.returncode == 2 and "the heads of a detector cannot be exported" in done.stderr


@pytest.mark.slow
def test_weights_that_do_not_fit_go_beside_the_file(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr("arm_toolkit.inference.export_onnx.LARGEST", 10_000)
    file = tmp_path / "model.onnx"
    said = export(classifier, file, "--img-size", "64", "--part", "backbone")
    assert "output map0" in said and "on noise" in said
    assert "model.onnx.data" in said and sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in (file, tmp_path / "model.onnx.data"):
        path.rename(moved / path.name)
    assert onnxruntime.InferenceSession(moved / "model.onnx")
