"""A trained model with any encoder predicts, is published, is read by timm and is exported, through the tools."""

from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from arm_toolkit.engine.config import load_config
from arm_toolkit.inference import load
from tests.helpers.published import CLASSES, config_of
from tests.helpers.small_models import ARCH, VMAMBA_ARCH
from tests.helpers.tools import invoke
from tests.helpers.untrained import write_checkpoint

slow = partial(pytest.param, marks=pytest.mark.slow)
DEIT = dict(name="deit_tiny_patch16_224", embed_dim=32, depth=4, num_heads=2)
CONVNEXT = dict(name="convnext_atto", depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))
AIM = dict(name="aim_600m_patch14_224", embed_dim=32, depth=4, num_heads=2)
CLASSIFIERS = dict(
    vim=dict(type="VimClassifier", arch=ARCH, img_size=64),
    vmamba=dict(type="VMambaClassifier", arch=VMAMBA_ARCH),
    deit=dict(type="TimmClassifier", img_size=64, **DEIT),
    convnext=dict(type="TimmClassifier", **CONVNEXT),
    aim=dict(type="TimmClassifier", **AIM),
)
SIZES = dict(aim=56)  # of images, where 64 pixels do not divide into patches
BACKBONES = dict(
    vim=dict(type="Vim", arch=ARCH, img_size=96),
    vmamba=dict(type="VMamba", arch=VMAMBA_ARCH),
    deit=dict(type="TimmBackbone", img_size=96, **DEIT),
    convnext=dict(type="TimmBackbone", **CONVNEXT),
)
CHANNELS = dict(vmamba=VMAMBA_ARCH["widths"], convnext=CONVNEXT["dims"])  # of hierarchical backbones


def write_model(kind: str, encoder: str, shapes: Path, folder: Path) -> Path:
    """A checkpoint with random weights of a classifier ("cls"), detector ("det") or segmentor ("seg")."""
    cfg = config_of(kind, shapes)
    if kind == "cls":
        cfg.model = dict(num_classes=3, data_preprocessor=cfg.model.data_preprocessor, **CLASSIFIERS[encoder])
        cfg.test_dataloader.dataset.transform.input_size = SIZES.get(encoder, 64)
    else:
        cfg.model.backbone = BACKBONES[encoder]
    if kind != "cls" and encoder in CHANNELS:  # no pyramid of ours
        channels = list(CHANNELS[encoder])
        if kind == "det":
            cfg.model.neck = dict(cfg.model.neck[-1], in_channels=channels)
        else:
            del cfg.model.neck
            cfg.model.decode_head.in_channels = channels
            cfg.model.auxiliary_head.in_channels = channels[cfg.model.auxiliary_head.in_index]
    cfg.dump(folder / "config.py")
    load_config(str(folder / "config.py"))  # imports what it names
    return write_checkpoint(cfg, folder / "model.pth", CLASSES[kind])


@pytest.fixture
def images(photographs, tmp_path) -> Path:
    """A folder of two small photographs."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for path in sorted((photographs / "camvid/images/validation").iterdir())[:2]:
        with Image.open(path) as image:
            image.convert("RGB").resize((160, 120)).save(folder / f"{path.stem}.png")
    return folder


def run(script: str, *arguments) -> str:
    done = invoke(script, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def predict(model: Path, images: Path, out: Path) -> dict[str, bytes]:
    """The result files, by name."""
    run("predict.py", model, images, "--out", out, "--no-drawings")
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("encoder", CLASSIFIERS)
@torch.no_grad()
def test_a_classifier(encoder, shapes, images, tmp_path):
    file = write_model("cls", encoder, shapes, tmp_path)
    results = predict(file, images, tmp_path / "one")
    assert len(results["results.csv"].splitlines()) == 3  # a header and two images
    run("publish.py", file, tmp_path / "published", "--license", "mit")
    assert predict(tmp_path / "published", images, tmp_path / "two") == results
    x = torch.randn(2, 3, *(SIZES.get(encoder, 64),) * 2)
    expected = load(file).model(x)
    source = f"local-dir:{tmp_path / 'published'}"
    assert torch.equal(timm.create_model(source, pretrained=True).eval()(x), expected)
    assert timm.create_model(source, pretrained=True, num_classes=7)(x).shape == (2, 7)
    levels = timm.create_model(source, pretrained=True, features_only=True)(x)
    assert all(level.ndim == 4 and level.isfinite().all() for level in levels)
    card = (tmp_path / "published/README.md").read_text()
    assert f"A classifier ({CLASSIFIERS[encoder].get('name', CLASSIFIERS[encoder]['type'][:-10])}" in card
    assert ("- mamba" in card) == (encoder in ("vim", "vmamba"))


DENSE = [("det", "vmamba"), slow("det", "deit"), *(slow("seg", encoder) for encoder in BACKBONES)]


@pytest.mark.parametrize(("kind", "encoder"), DENSE)
def test_a_dense_model(kind, encoder, shapes, images, tmp_path):
    file = write_model(kind, encoder, shapes, tmp_path)
    results = predict(file, images, tmp_path / "one")
    assert len(results) == (2 if kind == "det" else 3)
    run("publish.py", file, tmp_path / "published")
    assert predict(tmp_path / "published", images, tmp_path / "two") == results
    name = BACKBONES[encoder].get("name", BACKBONES[encoder]["type"])
    assert f"with the backbone {name}" in (tmp_path / "published/README.md").read_text()


@pytest.mark.parametrize("encoder", ["vmamba", slow("convnext"), slow("aim"), slow("vim")])
def test_nearest_neighbours(encoder, shapes, tmp_path):
    file = write_model("cls", encoder, shapes, tmp_path)
    run("prepare_data.py", "classes", shapes / "coco", tmp_path / "classes")
    data = f"test_dataloader.dataset.data_root={tmp_path / 'classes'}/"
    said = run("knn.py", tmp_path / "config.py", file, "--cfg-options", data)
    assert 0 <= float(said.split("top-1 ")[-1].split()[0]) <= 100


# -------------------------------------------------------------------------------------------------------- export


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "encoder", "name"),
    [
        *(("cls", encoder, "standard.onnx") for encoder in CLASSIFIERS if encoder != "vim"),  # exported as ARM
        ("det", "convnext", "arm.pt2"),
        ("seg", "deit", "standard.onnx"),
    ],
)
def test_an_exported_file_computes_the_same(kind, encoder, name, shapes, images, tmp_path):
    """The tool compares the file with the model on images of three sizes, if the model takes any."""
    if name.endswith(".onnx"):
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (tools/versions.txt, [export])")
    file = write_model(kind, encoder, shapes, tmp_path)
    arguments = (file, tmp_path / name, "--ops", Path(name).stem, "--images", images)
    fixed = (kind, encoder) == ("cls", "deit")  # its position table is for one size
    if fixed:
        refused = invoke("export.py", *arguments)
        assert refused.returncode == 2 and "one size may do: --img-size 64 64" in refused.stderr
        arguments += ("--img-size", "64")
    said = run("export.py", *arguments)
    assert "largest difference" in said and said.partition("on images 2 x ")[2].count(" x ") == (1 if fixed else 5)
