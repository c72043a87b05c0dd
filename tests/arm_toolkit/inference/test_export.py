"""Exported files run without this toolkit and compute what the model computes, for images of any size."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from arm_toolkit.engine.config import load_config
from arm_toolkit.inference import export_check, export_onnx
from tests.helpers.documents import blocks, commands
from tests.helpers.paths import ROOT
from tests.helpers.runs import det_config, seg_config
from tests.helpers.tools import invoke

onnx = pytest.importorskip("onnx", reason="onnx is not installed (tools/versions.txt, [export])")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (tools/versions.txt, [export])")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (tools/versions.txt, [export])")


def checkpoint(cfg: Config, file: Path) -> Path:
    """A checkpoint as a training writes it, with random weights."""
    torch.manual_seed(0)
    cfg = Config(cfg.to_dict())
    model = cfg.model.get("backbone", cfg.model)
    model.init_cfg = None
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        module = MODELS.build(cfg.model)
    for name, value in module.named_buffers():
        if name.endswith("running_var"):
            value.fill_(0.5)
    torch.save(dict(state_dict=module.state_dict(), meta=dict(cfg=cfg.pretty_text)), file)
    return file


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    cfg = load_config(str(ROOT / "cls_configs/quickstart_arm.py"))
    cfg.model.update(arch=dict(embed_dims=32, num_layers=1), img_size=64)
    return checkpoint(cfg, tmp_path_factory.mktemp("classifier") / "model.pth")


@pytest.fixture(scope="module")
def segmentor(tmp_path_factory, shapes) -> Path:
    cfg = seg_config(shapes)
    cfg.model.backbone.update(arch=dict(embed_dims=32, num_layers=4))
    return checkpoint(cfg, tmp_path_factory.mktemp("segmentor") / "model.pth")


@pytest.fixture(scope="module")
def detector(tmp_path_factory, shapes) -> Path:
    return checkpoint(det_config(shapes), tmp_path_factory.mktemp("detector") / "model.pth")


def export(*arguments, cwd: Path | None = None) -> str:
    done = invoke("export.py", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_classifier_as_onnx(classifier, shapes, tmp_path):
    """One file is run at other sizes than the one it was recorded at, and says what its input must be."""
    file = tmp_path / "model.onnx"
    said = export(classifier, file, "--images", shapes / "coco/val2017")
    assert "same top-1 class of all 3" in said and "on images 2 x 64 x 64, 1 x 52 x 88" in said
    model = onnx.load(file)
    assert {entry.domain for entry in model.opset_import} == {""} and not model.functions
    assert str(ROOT) not in str(model)  # no paths of this machine
    about = json.loads({entry.key: entry.value for entry in model.metadata_props}["export.json"])
    assert about["task"] == "classification" and about["input"]["channels"] == "RGB"
    assert about["input"]["mean"] == pytest.approx([123.675, 116.28, 103.53]) and len(about["classes"]) == 3
    session = onnxruntime.InferenceSession(file)
    assert session.run(None, dict(images=np.zeros((3, 3, 80, 49), np.float32)))[0].shape == (3, 3)


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
@pytest.mark.parametrize("name", ["standard.onnx", "ort.onnx", "standard.pt2"])
def test_segmentor_alone(segmentor, photographs, tmp_path, name):
    """Labels of photographs, in a process without the toolkit, are those of the model."""
    from arm_toolkit.inference.build import build
    from arm_toolkit.inference.export_parts import Segment

    file = tmp_path / name
    said = export(segmentor, file, "--ops", file.stem, "--images", photographs / "camvid/images/validation")
    assert "same label of all" in said and "3 images" in said
    torch.manual_seed(1)
    images = torch.randn(3, 3, 70, 101)
    found = run_alone(file, images)
    model = build(segmentor)[0]
    labels, logits = Segment(model)(images)
    assert torch.equal(found["labels"], labels)
    torch.testing.assert_close(found["logits"], logits, rtol=1e-4, atol=1e-4)
    with torch.no_grad():  # and those of mmseg
        assert torch.equal(model.predict(images)[2].pred_sem_seg.data[0], labels[2])


@pytest.mark.slow
def test_documented_commands(segmentor, classifier, detector, photographs, tmp_path, monkeypatch):
    """README and docs/export.md, as written, with small models."""
    (tmp_path / "PHOTOS").symlink_to(photographs / "camvid/images/validation")
    for source, name in ((segmentor, "camvid/iter_300.pth"), (detector, "mask_rcnn_arm_b/epoch_36.pth")):
        path = tmp_path / "work_dirs" / name
        path.parent.mkdir(parents=True)
        path.symlink_to(source)
    monkeypatch.chdir(tmp_path)
    document = ROOT / "docs/export.md"
    run = [words for words in commands(document) if words[1:2] == ["tools/export.py"]]
    assert len(run) == 3 and run[0] in commands(ROOT / "README.md")
    for words in (run[0], run[2]):
        export(*words[2:])
    export(classifier, "model.onnx", "--img-size", "224")
    variables: dict = {}
    exec(blocks(document, "python")[0], variables)
    assert variables["logits"].shape == (1, 3)


@pytest.mark.slow
def test_detector_ends_at_its_pyramid(detector, photographs, tmp_path):
    file = tmp_path / "model.onnx"
    said = export(detector, file, "--images", photographs / "coco2017_mini/val2017", "--img-size", "64", "96")
    assert "output map4" in said and "on images 2 x 64 x 96" in said
    session = onnxruntime.InferenceSession(file)
    assert session.get_inputs()[0].shape == ["batch", 3, 64, 96]
    maps = session.run(None, dict(images=np.zeros((1, 3, 64, 96), np.float32)))
    assert [level.shape[2:] for level in maps] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    done = invoke("export.py", detector, file, "--part", "model")
    assert done.returncode == 2 and "the heads of a detector cannot be exported" in done.stderr


@pytest.mark.slow
def test_pixels_backbone_and_our_operators(segmentor, classifier, photographs, tmp_path):
    images = photographs / "camvid/images/validation"
    said = export(segmentor, tmp_path / "pixels.pt2", "--pixels", "--ops", "arm", "--images", images)
    assert "uint8, RGB" in said and "same label of all" in said
    program = torch.export.load(tmp_path / "pixels.pt2")
    assert any(str(node.target) == "arm.cross_scan.default" for node in program.graph.nodes)
    said = export(classifier, tmp_path / "map.pt2", "--part", "backbone", "--img-size", "64")
    assert "output map0" in said and "on noise" in said


@pytest.mark.slow
def test_weights_that_do_not_fit_go_beside_the_file(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(export_onnx, "LARGEST", 10_000)
    file = tmp_path / "model.onnx"
    said = export(classifier, file, "--img-size", "64")
    assert "model.onnx.data" in said and sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in (file, tmp_path / "model.onnx.data"):
        path.rename(moved / path.name)
    assert onnxruntime.InferenceSession(moved / "model.onnx")
