"""A loaded model takes images in any form, gives what tools/test.py computes, and serves several threads."""

import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from PIL import Image
from pycocotools import mask as rle

from arm_backbone.checkpoint.files import CheckpointError
from arm_images.errors import DataError
from arm_toolkit.engine.launch import use_group_norm
from arm_toolkit.errors import ConfigError
from arm_toolkit.inference import load
from arm_toolkit.inference.build import build
from arm_toolkit.inference.publish import Statements, publish
from tests.helpers.hub_server import Hub, serve, use
from tests.helpers.published import CLASSES, config_of
from tests.helpers.runs import seg_config
from tests.helpers.tools import invoke
from tests.helpers.untrained import write_checkpoint

pytestmark = pytest.mark.xdist_group("inference")
TASKS = ("det", "seg", "cls")


@pytest.fixture(scope="module")
def predictors(models) -> dict:
    return {task: load(file) for task, file in models.items()}


def arrays(result) -> list[np.ndarray]:
    """What a result holds."""
    return [value for value in vars(result).values() if isinstance(value, np.ndarray)]


def same(one, two) -> bool:
    return len(arrays(one)) > 0 and all(map(np.array_equal, arrays(one), arrays(two)))


# ------------------------------------------------------------------------------------------ equal to tools/test.py


def run_test_py(task: str, models: dict, tmp_path: Path, *options: str) -> Path:
    out = tmp_path / ("labels" if task == "seg" else "results.pkl")
    config = models[task].with_suffix(".py")
    done = invoke("test.py", config, models[task], "--out", out, "--work-dir", tmp_path / "work", *options)
    assert done.returncode == 0, done.stderr
    return out


def test_detections_are_those_of_test_py(models, predictors, images, tmp_path):
    expected = pickle.loads(run_test_py("det", models, tmp_path).read_bytes())
    assert len(expected) == len(images)
    for sample in expected:
        found, truth = predictors["det"](sample["img_path"]), sample["pred_instances"]
        assert len(found) == len(truth["scores"]) > 3
        np.testing.assert_allclose(found.boxes, truth["bboxes"], atol=1e-3, rtol=0)
        assert np.array_equal(found.scores, truth["scores"]) and np.array_equal(found.labels, truth["labels"])
        assert np.array_equal(found.masks, rle.decode(truth["masks"]).transpose(2, 0, 1))
        assert found.size == found.masks.shape[1:] == tuple(sample["ori_shape"])
        assert found.names == [CLASSES["det"][label] for label in found.labels]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["whole", "slide", "tta"])
def test_label_maps_are_those_of_test_py(how, models, shapes, images, tmp_path):
    options, arguments = {"slide": (["model.test_cfg.mode=slide"], {}), "tta": ([], dict(tta=True))}.get(how, ([], {}))
    given = dict(models)
    if how != "whole":
        cfg = seg_config(shapes, validate=True)
        if how == "slide":
            cfg.model.test_cfg.update(mode="slide", crop_size=(48, 48), stride=(32, 32))
        else:
            cfg.tta_model = dict(type="SegTTAModel")
            sizes = [dict(type="Resize", scale=(edge, edge), keep_ratio=True) for edge in (64, 96)]
            flips = [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)]
            last = [dict(type="LoadAnnotations")], [dict(type="PackSegInputs")]
            views = dict(type="TestTimeAug", transforms=[sizes, flips, *last])
            cfg.tta_pipeline = [dict(type="LoadImageFromFile"), views]
        cfg.dump(tmp_path / "seg.py")
        given["seg"] = write_checkpoint(cfg, tmp_path / "seg.pth", CLASSES["seg"])
    labels = run_test_py("seg", given, tmp_path, *(["--tta"] if how == "tta" else []))
    predictor = load(given["seg"], **arguments)
    for path in images:
        found = predictor(path)
        stored = np.asarray(Image.open(labels / f"{path.stem}.png"))
        assert np.array_equal(found.labels + predictor.reduce_zero_label, stored)
        assert len(np.unique(stored)) > 1
        assert (found.scores is None) == (how == "tta")


def test_classes_are_those_of_test_py(models, predictors, shapes, tmp_path):
    assert invoke("prepare_data.py", "classes", shapes / "coco", tmp_path / "classes").returncode == 0
    folder = tmp_path / "classes"
    out = run_test_py("cls", models, tmp_path, "--cfg-options", f"test_dataloader.dataset.data_root={folder}")
    files = sorted((folder / "val").rglob("*.*"))
    logits = pickle.loads(out.read_bytes())
    assert len(logits) == len(files) > 3
    for path, expected in zip(files, logits):
        found = predictors["cls"](path)
        np.testing.assert_allclose(found.scores, torch.as_tensor(expected).softmax(0).numpy(), atol=1e-6)
        assert found.name == CLASSES["cls"][int(np.argmax(expected))] and found.score == found.scores.max()


# --------------------------------------------------------------------------------------------------- what goes in


@pytest.mark.parametrize("task", TASKS)
def test_an_image_in_any_form(task, predictors, images, tmp_path):
    """A lossless file, PIL, arrays and tensors give equal results; so do the forms of a greyscale image."""
    predictor, path = predictors[task], tmp_path / "image.png"
    rgb = np.asarray(Image.open(images[0]).convert("RGB"))
    Image.fromarray(rgb).save(path)
    channels_first = torch.as_tensor(rgb.transpose(2, 0, 1).copy())
    opaque = np.full_like(rgb[..., :1], 255)
    expected = predictor(path)
    forms = [str(path), Image.open(path), rgb, rgb[::-1][::-1], channels_first, channels_first / 255]
    forms.append((channels_first / 255).half())
    forms += [np.concatenate([rgb, opaque], 2), Image.fromarray(rgb).convert("RGBA")]
    assert all(same(expected, predictor(form)) for form in forms)
    assert same(expected, predictor(cv2.imread(str(path)), bgr=True))
    grey = rgb[..., 0]
    forms = [np.stack([grey] * 3, 2), grey, grey[..., None], grey.astype(np.uint16) * 257, Image.fromarray(grey)]
    forms.append(torch.as_tensor(grey)[None])
    assert all(same(predictor(forms[0]), predictor(form)) for form in forms[1:])


@pytest.mark.parametrize("task", TASKS)
def test_images_are_turned_upright(task, predictors, images, tmp_path):
    """Results are in pixels of the upright image, from a file and from PIL."""
    upright = Image.open(images[0]).convert("RGB").crop((0, 0, 96, 64))
    exif = Image.Exif()
    exif[274] = 6  # stored turned by 90 degrees to the left
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    expected = predictors[task](np.asarray(upright))
    assert expected.size == (64, 96)
    for given in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        assert same(expected, predictors[task](given))


@pytest.mark.parametrize("task", TASKS)
def test_lists_and_batches(task, predictors, images):
    """Results come in the order of the images, also where sizes differ."""
    given = [np.asarray(Image.open(path).convert("RGB")) for path in images[:4]]
    given.insert(1, given[0][:64])
    singles = [predictors[task](image) for image in given]
    batch = predictors[task](given, batch_size=5)
    assert [found.size for found in batch] == [image.shape[:2] for image in given]
    for one, other in zip(singles, batch, strict=True):
        if task == "seg":
            assert np.mean(one.labels != other.labels) < 1e-3
        else:
            np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    assert predictors[task]([]) == []


@pytest.mark.parametrize("task", TASKS)
def test_threads(task, predictors, images):
    """Several threads get what one gets."""
    given = images * 3
    expected = [predictors[task](path) for path in given]
    with ThreadPoolExecutor(4) as threads:
        assert all(map(same, expected, threads.map(predictors[task], given)))


@pytest.mark.parametrize(
    "image, says",
    [
        ("nothing.jpg", "nothing.jpg does not exist"),
        (".", ". is not a regular file"),
        (np.zeros((4, 4, 3)), "array of float64 and shape (4, 4, 3); give a path"),
        (np.zeros((2, 4, 4, 3), np.uint8), "shape (2, 4, 4, 3)"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), "tensor of shape (4, 4, 3)"),
        (torch.full((3, 4, 4), 255.0), "tensor with values from 255 to 255"),
        (torch.full((3, 4, 4), float("nan")), "tensor with values from nan"),
        (7, "is a int; give a path"),
    ],
)
def test_what_is_no_image(image, says, predictors):
    with pytest.raises(DataError) as error:
        predictors["seg"](image)
    assert says in str(error.value)
    with pytest.raises(DataError, match=r"image 1 of the list|nothing|regular"):
        predictors["seg"]([np.zeros((4, 4, 3), np.uint8), image])


def test_a_broken_file_is_named(predictors, images, tmp_path):
    (tmp_path / "cut.jpg").write_bytes(images[0].read_bytes()[:500])
    with pytest.raises(DataError, match="cut.jpg cannot be read"):
        predictors["det"](tmp_path / "cut.jpg")


# ------------------------------------------------------------------------------------------------- what comes out


def test_supervision_reads_results(predictors, images):
    import supervision

    found = predictors["det"](images[0])
    objects = found.to_supervision()
    assert isinstance(objects, supervision.Detections) and len(objects) == len(found)
    assert np.array_equal(objects.mask, found.masks) and objects["class_name"].tolist() == found.names
    assert len(objects[objects.confidence > found.scores[2]]) == len(found.above(found.scores[2])) - 1 == 2
    labels = predictors["seg"](images[0])
    regions = labels.to_supervision()
    assert regions.area.sum() == labels.labels.size and regions["class_name"].tolist() == labels.names
    assert sum(labels.shares().values()) == pytest.approx(1)
    classes = predictors["cls"](images[0])
    top = classes.to_supervision().get_top_k(2)
    assert top[0].tolist() == [label for label, _ in classes.top(2)]


def test_scores_of_pixels_are_probabilities(predictors, images):
    predictor = predictors["seg"]
    found = predictor(images[0])
    item = predictor.prepare(predictor.read(images[0]), None)
    with torch.no_grad():
        logits = predictor.model.test_step(pseudo_collate([item.data]))[0].seg_logits.data
    np.testing.assert_allclose(found.scores, logits.softmax(0).amax(0).numpy(), atol=1e-6)


def test_results_cannot_be_assigned_to(predictors, images):
    with pytest.raises(AttributeError):
        predictors["cls"](images[0]).scores = None


# -------------------------------------------------------------------------------------------------------- loading


@pytest.fixture(scope="module")
def published(models, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("published")
    return {task: publish(str(file), folder / task, None, Statements()).folder for task, file in models.items()}


@pytest.mark.parametrize("task", TASKS)
def test_published_folder(task, published, predictors, images, tmp_path, monkeypatch):
    """It gives what the checkpoint gives, in another folder and from the hub."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(published[task], "copy")
    files = {path.name: path.read_bytes() for path in published[task].iterdir()}
    with serve(Hub(files={"me/model": files})) as hub:
        use(monkeypatch, tmp_path / "cache", hub.url)
        found = [load("copy"), load("hf://me/model")]
    for predictor in found:
        assert same(predictor(images[0]), predictors[task](images[0]))
        assert predictor.classes == CLASSES[task] and predictor.palette == predictors[task].palette


def test_importing_is_light_and_works_from_any_folder(tmp_path):
    code = "import sys, arm_toolkit.inference as i; i.load; print('torch' in sys.modules, 'mmengine' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "False False\n", done.stderr


def test_configuration_with_checkpoint(models, predictors, images):
    found = load(models["seg"].with_suffix(".py"), models["seg"])(images[0])
    assert same(found, predictors["seg"](images[0]))


def test_norms_of_a_training_with_one_image_a_batch(shapes, images, tmp_path):
    """Such a training uses GroupNorm in place of BatchNorm, which the configuration file does not say."""
    cfg = config_of("seg", shapes)
    cfg.train_dataloader.batch_size = 1
    cfg.dump(tmp_path / "seg.py")
    use_group_norm(cfg)
    checkpoint = write_checkpoint(cfg, tmp_path / "seg.pth", CLASSES["seg"])
    found = [load(checkpoint)(images[0]), load(tmp_path / "seg.py", checkpoint)(images[0])]
    assert same(*found)


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda text: f"{text}\nimport os\nopen('touched', 'w')\n", "is more than values and dict"),
        (lambda text: text.replace("type='PackSegInputs'", "type='os.system'"), "not the plain name of a registered"),
        (lambda text: text.replace("type='PackSegInputs'", "type='Unknown'"), "'Unknown' is not registered"),
        (lambda text: text.replace("type='PackSegInputs'", "type='Resize', scale='open(1)'"), "looks like code"),
        (lambda text: text.replace("imports=[", "imports=['antigravity', "), "its custom_imports name 'antigravity'"),
    ],
)
def test_a_hostile_configuration_in_a_checkpoint(change, says, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    contents = torch.load(models["seg"], weights_only=True)
    text = change(contents["meta"]["cfg"])
    assert text != contents["meta"]["cfg"]
    torch.save(contents | dict(meta=contents["meta"] | dict(cfg=text)), "seg.pth")
    with pytest.raises(ConfigError, match=says):
        load("seg.pth")
    assert not Path("touched").exists()


def test_build_gives_the_module(models):
    module, cfg = build(models["det"])
    assert not module.training and cfg.default_scope == "mmdet" and next(module.parameters()).device.type == "cpu"


def test_names_and_colours(predictors):
    for task, predictor in predictors.items():
        assert predictor.classes == CLASSES[task]
        assert len(set(predictor.palette)) == len(CLASSES[task])


def test_without_names_classes_are_numbered(models, shapes, tmp_path, capfd):
    cfg = seg_config(shapes)
    cfg.test_dataloader = cfg.train_dataloader = None
    contents = torch.load(models["cls"], weights_only=True)
    del contents["meta"]["dataset_meta"]
    torch.save(contents, tmp_path / "cls.pth")
    assert load(tmp_path / "cls.pth").classes == ("class 0", "class 1", "class 2")


def test_what_cannot_be_loaded(models, predictors, shapes, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/epoch_1.pth").write_bytes(models["seg"].read_bytes())
    contents = torch.load(models["seg"], weights_only=True)
    torch.save(dict(state_dict=contents["state_dict"]), tmp_path / "bare.pth")
    torch.save(contents | dict(meta=contents["meta"] | dict(dataset_meta=dict(classes=["a"]))), tmp_path / "other.pth")
    classes = torch.load(models["cls"], weights_only=True)
    classes["meta"]["dataset_meta"]["classes"] = ["a", "b"]
    torch.save(classes, tmp_path / "two.pth")
    few = {**contents["state_dict"]}
    few.pop(next(iter(few)))
    torch.save(contents | dict(state_dict=few), tmp_path / "few.pth")
    config = models["seg"].with_suffix(".py")
    for given, error, says in (
        ((tmp_path / "nothing",), ConfigError, "does not exist; give a published folder, hf://OWNER/NAME"),
        ((config,), ConfigError, "is a configuration, which holds no weights; add --checkpoint FILE"),
        ((tmp_path / "run",), ConfigError, "give a checkpoint in it, as .*epoch_1.pth"),
        ((tmp_path,), ConfigError, "was not written by tools/publish.py"),
        ((models["seg"], models["seg"]), ConfigError, "only a configuration .* needs it"),
        ((tmp_path / "bare.pth",), CheckpointError, "holds no configuration"),
        ((tmp_path / "other.pth",), ConfigError, "classes is background, disc, square, .*, but .* was trained with a"),
        ((tmp_path / "two.pth",), ConfigError, "num_classes=3, but .*two.pth has 2 classes"),
        ((tmp_path / "few.pth",), CheckpointError, "does not fit the model"),
        ((models["det"].with_suffix(".py"), models["seg"]), CheckpointError, "does not fit the model"),
    ):
        with pytest.raises(error, match=says):
            load(*given)
    with pytest.raises(ConfigError, match="'tpu'"):
        load(models["seg"], device="tpu")
    with pytest.raises(ConfigError, match="no tta_model"):
        load(models["seg"], tta=True)
    with pytest.raises(ConfigError, match="only a segmentor"):
        load(models["det"], window=64)
