"""Bad input gives one line with the file or key, the value and the remedy, exit status 2, and no files."""

import json
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from arm_backbone.vim import VimClassifier
from arm_backbone.vmamba import VMamba
from arm_pretrain import MAEPretrainer
from arm_toolkit.datasets.annotations import read_categories
from arm_toolkit.datasets.samplers import SeededSampler
from tests.helpers.json_files import change_json
from tests.helpers.paths import ROOT
from tests.helpers.runs import CONFIGS, det_config, mae_config, moco_config, pretrain_config, seg_config, train
from tests.helpers.small_models import ARCH, VMAMBA_ARCH
from tests.helpers.tools import call_tool, run_tool


@pytest.fixture(scope="module")
def files(shapes, tmp_path_factory) -> Path:
    """A folder with a configuration of each kind, and checkpoints of a segmentor and of pretraining."""
    folder = tmp_path_factory.mktemp("files")
    for kind, config in CONFIGS.items():
        options = {} if kind == "pretrain" else dict(validate=True)
        config(shapes, **options).dump(folder / f"{kind}.py")
    train(seg_config(shapes, **{"train_cfg.max_iters": 1}), folder / "seg")
    shutil.copy(folder / "seg/iter_1.pth", folder / "seg.pth")
    train(pretrain_config(shapes, **{"train_cfg.max_epochs": 2}), folder / "pretrain")
    shutil.copy(folder / "pretrain/epoch_2.pth", folder / "pretrain.pth")
    (folder / "cut.pth").write_bytes((folder / "seg.pth").read_bytes()[:-1000])
    return folder


@pytest.fixture
def refused(files, tmp_path, capsys, monkeypatch):
    """Runs a tool that must fail: checks the exit status, the one line and, unless `started`, that no file was written.

    Arguments that name one of `files` are replaced by its path.
    """
    monkeypatch.chdir(tmp_path)

    def check(script: str, *arguments, says: str | list[str], started: bool = False) -> str:
        paths = [files / a if isinstance(a, str) and (files / a).is_file() else a for a in arguments]
        before = set(tmp_path.rglob("*"))
        capsys.readouterr()
        status = call_tool(script, *paths, "--work-dir", tmp_path / f"work{len(before)}")
        error = capsys.readouterr().err
        assert status == 2, error
        assert re.fullmatch(r"error: [^\n]+\n", error), error
        for words in [says] if isinstance(says, str) else says:
            assert words in error, error
        if not started:  # before the first batch
            assert set(tmp_path.rglob("*")) == before
        return error

    return check


# ---------------------------------------------------------------------------- command line, configuration

pytestmark = pytest.mark.xdist_group("bad input")

OPTIONS = {
    "an argument of the backbone": ("seg", "model.backbone.depht=3", "ARM takes no such argument"),
    "an argument of the pretrainer": ("pretrain", "model.depht=3", "ARMPretrainer takes no such argument"),
    "an argument of the loop": ("seg", "train_cfg.max_iter=5", "IterBasedTrainLoop takes no such argument"),
    "an argument of the epoch loop": ("det", "train_cfg.max_epoch=5", "EpochBasedTrainLoop takes no such argument"),
    "an argument of the data set": ("pretrain", "train_dataloader.dataset.sise=9", "ImageCrops takes no such"),
    "an argument of a transform": (
        "seg",
        "train_dataloader.dataset.pipeline.1.on_eror=skip",
        "LoadImageFromFile takes no",
    ),
    "an argument of the optimizer": ("det", "optim_wrapper.optimizer.lrr=1", "AdamW takes no such argument"),
    "an argument of the schedule": ("det", "param_scheduler.0.factor=1", "LinearLR takes no such argument"),
    "an argument of a hook": ("seg", "default_hooks.logger.intervall=1", "LoggerHook takes no such argument"),
    "what the checkpoint hook would swallow": (
        "pretrain",
        "default_hooks.checkpoint.intervall=1",
        "CheckpointHook takes no such argument; did you mean 'interval'?",
    ),
    "what the metric would swallow": ("seg", "val_evaluator.iou_metric=mIoU", "did you mean 'iou_metrics'?"),
    "an argument of the metric": ("det", "val_evaluator.metrc=bbox", "CocoMetric takes no such argument"),
    "an argument of the data loader": ("det", "train_dataloader.batchsize=1", "did you mean 'batch_size'?"),
    "a part of the model": ("det", "model.roi_haed.foo=1", "did you mean 'roi_head'?"),
    "below a number": ("det", "model.roi_head.bbox_head.num_classes.x=1", "is 3 and has no keys"),
    "a place in a list": ("det", "model.neck.5.in_channels=1", "model.neck is a list of 2"),
    "a top-level key": ("seg", "optim_wraper=1", "did you mean 'optim_wrapper'?"),
    "a part of a top-level key": ("pretrain", "optim_wraper.lr=1", "did you mean 'optim_wrapper'?"),
    "the type of the model": ("pretrain", "model.type=ARMPretraner", "did you mean 'ARMPretrainer'?"),
    "the type of the backbone": ("seg", "model.backbone.type=ARMM", "did you mean 'ARM'?"),
    "the type of the data set": ("det", "train_dataloader.dataset.type=CoccoDataset", "did you mean 'CocoDataset'?"),
    "the type of a transform": (
        "det",
        "train_dataloader.dataset.pipeline.1.type=LoadImageFromFle",
        "'LoadImageFromFile'?",
    ),
    "the type of the optimizer": ("det", "optim_wrapper.optimizer.type=AdmaW", "did you mean 'AdamW'?"),
    "the type of the loop": ("seg", "train_cfg.type=IterLoop", "did you mean"),
    "the type of the sampler": ("seg", "train_dataloader.sampler.type=Foo", "no data sampler has this name"),
}


@pytest.mark.parametrize("what", OPTIONS)
def test_wrong_options(what, refused):
    kind, option, says = OPTIONS[what]
    key, value = option.split("=")
    error = refused("train.py", f"{kind}.py", "--cfg-options", option, says=[key.split(".")[-1], value, says])
    assert key in error


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("seg", ["model.backbone.arch=gigantic"], ["arch='gigantic' is unknown", "tiny, small, base, large, huge"]),
        ("pretrain", ["model.arch=gigantic"], ["arch='gigantic' is unknown", "tiny, small, base, large, huge"]),
        (
            "pretrain",
            ["model.img_size=100", "train_dataloader.dataset.size=100"],
            ["img_size=100 does not divide into patches of 16"],
        ),
        (
            "pretrain",
            ["model.img_size=112", "train_dataloader.dataset.size=112"],
            ["7 x 7 patches does not divide into clusters of 2 x 2", "multiples of 2 patches"],
        ),
        ("pretrain", ["model.img_size=128"], ["model.img_size=128 and train_dataloader.dataset.size=96 differ"]),
        ("seg", ["train_dataloader.num_workers=-1"], ["train_dataloader.num_workers=-1"]),
        ("seg", ["optim_wrapper.paramwise_cfg.layer_deca=0.9"], ["layer_deca"]),
        ("seg", ["data_root"], ["--cfg-options data_root: give KEY=VALUE"]),
        ("seg", ["val_dataloader.dataset.pipeline.0.on_error=skip"], ["val_dataloader", "on_error='skip'", "'raise'"]),
        ("pretrain", ["train_dataloader.batch_size=17"], ["train_dataloader", "16 images", "smaller batch_size"]),
    ],
)
def test_wrong_values(kind, options, says, refused):
    refused("train.py", f"{kind}.py", "--cfg-options", *options, says=says)


@pytest.mark.parametrize("option", ["randomness.deterministic=True", "train_dataloader.drop_last=True"])
def test_arguments_that_are_merely_absent_are_accepted(option, files):
    """mmengine reads these keys from parts of the configuration without a `type`."""
    from arm_toolkit.engine.config import load_config

    key, value = option.split("=")
    cfg = load_config(str(files / "det.py"), {key: value})
    assert cfg.get(key.split(".")[0])[key.split(".")[1]] is True


def test_wrong_configuration_files(refused, tmp_path):
    refused("train.py", "gone.py", says=["configuration gone.py does not exist", "seg_configs/"])
    refused("test.py", "seg.pth", "seg.py", says=["seg.pth is not a .py file", "checkpoint comes second"])
    base = f'_base_ = ["{ROOT}/seg_configs/quickstart_upernet.py"]\n'
    for text, says in (
        ("optim_wraper = dict(optimizer=dict(lr=1))", ["'optim_wraper'", "did you mean 'optim_wrapper'?"]),
        ("train_cfg = dict(", ["cannot be read"]),
        ("train_dataloader = dict(batch_size=undefined)", ["cannot be read", "undefined"]),
    ):
        Path("mine.py").write_text(base + text + "\n")
        refused("train.py", "mine.py", says=["mine.py", *says])


def test_wrong_command_lines(refused):
    refused("pretrain.py", "--model", "arm_giant", says=["--model arm_giant is unknown", "arm_tiny, arm_small"])
    refused("pretrain.py", says="give either a configuration file or --model")
    refused("pretrain.py", "--model", "arm_tiny", "--epochs", 1, says=["--epochs 1", "at least 2"])
    says = ["nowhere does not exist", "folder of images"]
    refused("pretrain.py", "--model", "arm_tiny", "--data", "nowhere", says=says)
    refused("test.py", "seg.py", "seg.pth", "--out", "maps.pkl", says=["--out maps.pkl", "give a folder"])
    refused("test.py", "det.py", "seg.pth", "--out", "boxes.xml", says=["--out boxes.xml", "ending in .json or .pkl"])
    refused("test.py", "seg.py", "seg.pth", "--tta", "--cfg-options", "tta_model=None", says=["--tta", "no tta_model"])
    refused("test.py", "pretrain.py", "pretrain.pth", says="no test_dataloader")
    refused("train.py", "pretrain.py", "--launcher", "slurm", says=["--launcher slurm needs a GPU", "dist_train.sh"])


# ------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("seg.pth", ["does not fit the model", "of the model are missing", "Give the configuration"]),
        ("pretrain.pth", ["does not fit the model", "pretrain checkpoint", "init_cfg"]),
        ("cut.pth", ["is not a complete PyTorch checkpoint", "save it again"]),
        ("seg.py", ["PyTorch checkpoint", "save it again"]),
        ("gone.pth", ["gone.pth does not exist; give the path"]),
    ],
)
def test_detector_is_not_tested_with_something_else(name, says, refused):
    refused("test.py", "det.py", name, says=[name, *says])


def test_training_does_not_start_from_weights_that_do_not_fit(files, shapes, refused):
    """The error says what does not fit, or gives the command that writes a missing file."""

    def config(checkpoint: Path, **options) -> str:
        cfg = seg_config(shapes, **options)
        cfg.model.backbone.init_cfg = dict(type="Pretrained", checkpoint=str(checkpoint))
        cfg.dump("mine.py")
        return "mine.py"

    wider = {"model.backbone.arch.embed_dims": 48, "model.neck.in_channels": 48}
    says = [f"{files}/pretrain.pth does not fit the model", "have another shape", "Build the model as the file's was"]
    refused("train.py", config(files / "pretrain.pth", **wider), says=says)
    says = ["of the model are missing", "blocks.4"]
    refused("train.py", config(files / "pretrain.pth", **{"model.backbone.arch.num_layers": 5}), says=says)
    refused("train.py", config(files / "cut.pth"), says=["cut.pth is not a complete PyTorch checkpoint"])
    says = ["gone_pretrain.pth does not exist", "convert_checkpoint.py", "init_cfg=None"]
    refused("train.py", config(Path("gone_pretrain.pth")), says=says)
    options = ("--cfg-options", "load_from=gone.pth")
    refused("train.py", config(files / "pretrain.pth"), *options, says="gone.pth does not exist")


# ------------------------------------------------------------------- encoders and ways of pretraining


slow = partial(pytest.param, marks=pytest.mark.slow)


def weights_of(kind: str) -> str:
    """A file of another encoder, or of another way of pretraining."""
    models = dict(
        vim=lambda: VimClassifier(ARCH, img_size=96, num_classes=3),
        vmamba=lambda: VMamba(VMAMBA_ARCH),
        mae=lambda: MAEPretrainer(ARCH, 96, decoder_dim=32, decoder_depth=1, decoder_heads=2),
    )
    torch.save(models[kind]().state_dict(), f"{kind}.pth")
    return f"{kind}.pth"


@pytest.mark.parametrize(
    ("given", "backbone", "says"),
    [
        ("vim", "ARM", "it holds Vim (classifier), but the model is ARM; give a checkpoint of ARM, or build Vim"),
        ("pretrain", "Vim", "it holds ARM (pretrain), but the model is Vim; give a checkpoint of Vim, or build ARM"),
        ("vmamba", "Vim", "it holds VMamba (backbone), but the model is Vim; give a checkpoint of Vim"),
        slow("mae", "VMamba", "it holds ARM (mae), but the model is VMamba; give a checkpoint of VMamba"),
        slow("vmamba", "TimmBackbone", "vmamba.pth does not fit deit_tiny_patch16_224"),
    ],
)
def test_training_does_not_start_from_another_encoder(given, backbone, says, files, shapes, refused):
    cfg = det_config(shapes)
    sizes = dict(VMamba=dict(arch=VMAMBA_ARCH), TimmBackbone=dict(name="deit_tiny_patch16_224", depth=4))
    checkpoint = str(files / "pretrain.pth") if given == "pretrain" else weights_of(given)
    start = dict(type="Pretrained", checkpoint=checkpoint)
    cfg.model.backbone = dict(type=backbone, init_cfg=start, **sizes.get(backbone, dict(arch=ARCH)))
    cfg.dump("mine.py")
    refused("train.py", "mine.py", says=[checkpoint, says])


def test_a_detector_is_not_tested_with_another_encoder_or_a_pretraining(shapes, refused):
    says = "It is a mae checkpoint: to start training from it, set it as init_cfg.checkpoint of the backbone"
    refused("test.py", "det.py", weights_of("mae"), says=["mae.pth does not fit the model", says])
    cfg = det_config(shapes, validate=True)
    cfg.model.backbone = dict(type="Vim", arch=ARCH, img_size=96)
    with DefaultScope.overwrite_default_scope("mmdet"):
        torch.save(MODELS.build(cfg.model).state_dict(), "vim_detector.pth")
    says = "It holds Vim (dense), but the model is ARM: give a checkpoint of ARM, or build Vim."
    refused("test.py", "det.py", "vim_detector.pth", says=["vim_detector.pth does not fit the model", says])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(name="mixer_s16_224"), "mixer_s16_224 takes no images of 128 x 160 pixels"),
        (dict(name="deit_tiny_patch16_224", pretrained=True), "pretrained is not accepted with name='deit_tiny_"),
        slow(dict(name="deit_tiny_patch16_224", depht=3), "depht=3: TimmBackbone takes no such argument"),
        slow(dict(name="deit_toy"), "name='deit_toy' is not a model of timm"),
    ],
)
def test_wrong_models_of_timm(change, says, shapes, refused):
    cfg = seg_config(shapes)
    cfg.model.backbone = dict(type="TimmBackbone", **change)
    cfg.dump("mine.py")
    refused("train.py", "mine.py", says=says)


NO_TRUNK = "give one of ARM, Vim"
SHARDED = dict(model_wrapper_cfg=dict(type="fully_shard"))


@pytest.mark.parametrize(
    ("config", "options", "says"),
    [
        (pretrain_config, {"model.encoder": "VMamba"}, ["encoder='VMamba' is hierarchical", NO_TRUNK]),
        (mae_config, {"model.encoder": "VMamba"}, ["encoder='VMamba' is hierarchical", NO_TRUNK]),
        (moco_config, {"model.encoder": "VMamba"}, ["encoder='VMamba' is hierarchical", NO_TRUNK]),
        (mae_config, {"model.encoder": "AIM"}, ["encoder='AIM' is of timm", "TimmBackbone", NO_TRUNK]),
        (moco_config, {"model.encoder": "deit_base_patch16_224"}, ["deit_base_patch16_224' is of timm", NO_TRUNK]),
        (mae_config, {"model.mask_ratio": 1.0}, ["mask_ratio=1.0 leaves the encoder none of 36 patches to read"]),
        (mae_config, {"custom_hooks.1.given": 3}, ["given=3: MAEPretrainer predicts all masked patches at once"]),
        (moco_config, SHARDED, ["model.type=MoCoPretrainer", "remove model_wrapper_cfg"]),
    ],
)
def test_pretraining_that_makes_no_sense(config, options, says, shapes, refused):
    cfg = config(shapes)
    cfg.merge_from_dict(options)
    cfg.dump("mine.py")
    refused("train.py", "mine.py", says=says)


def test_moco_with_batches_of_one_image(shapes, refused):
    moco_config(shapes).dump("mine.py")
    option = "train_dataloader.batch_size=1"
    refused("train.py", "mine.py", "--cfg-options", option, says=["a batch of one image", "at least 2"], started=True)


# ------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize("script", ["train.py", "test.py"])
@pytest.mark.parametrize("kind", ["det", "seg"])
def test_data_that_are_not_there(kind, script, refused, shapes, tmp_path, tmp_path_factory):
    arguments = [f"{kind}.py"] + ["seg.pth"] * (script == "test.py") + ["--cfg-options"]
    loader = "train_dataloader" if script == "train.py" else "test_dataloader"
    cfg = CONFIGS[kind](shapes, validate=True)
    says = [f"{loader}.dataset.data_root: /nowhere does not exist", "data_root=PATH"]
    refused(script, *arguments, f"{loader}.dataset.data_root=/nowhere", says=says)
    key, value = ("img", "pics") if kind == "det" else ("seg_map_path", "labels")
    says = [f"{loader}.dataset.data_prefix.{key}: {cfg[loader].dataset.data_root}{value} does not exist", "data_prefix"]
    refused(script, *arguments, f"{loader}.dataset.data_prefix.{key}={value}", says=says)
    if kind == "det":
        says = [f"{loader}.dataset.ann_file", "annotations/gone.json does not exist"]
        refused(script, *arguments, f"{loader}.dataset.ann_file=annotations/gone.json", says=says)
        evaluator = loader.replace("train", "val").replace("dataloader", "evaluator")
        says = f"{evaluator}.ann_file: gone.json does not exist"
        refused(script, *arguments, f"{evaluator}.ann_file=gone.json", says=says)


def test_whole_data_root_that_is_not_there(refused):
    config = ROOT / "det_configs/mask_rcnn_arm_ti.py"
    says = "error: train_dataloader.dataset.data_root: /nowhere does not exist; set --cfg-options data_root=PATH\n"
    refused("train.py", config, "--cfg-options", "data_root=/nowhere", says=says)
    says = ["train_dataloader.dataset.path: /nowhere does not exist", "folder of images"]
    refused("train.py", "pretrain.py", "--cfg-options", "train_dataloader.dataset.path=/nowhere", says=says)


@pytest.fixture
def broken(shapes, tmp_path_factory) -> Path:
    """A copy of the shapes that a test may damage."""
    folder = tmp_path_factory.mktemp("data") / "broken"
    shutil.copytree(shapes, folder)
    return folder


def victim(data: Path, kind: str) -> Path:
    """The first training image of the first batch."""
    folder = "ade/images/training" if kind == "seg" else "coco/train2017"
    return sorted((data / folder).iterdir())[SeededSampler(range(16), seed=0)._order(0)[0]]


@pytest.mark.parametrize("kind", CONFIGS)
def test_unreadable_image(kind, broken, refused, tmp_path):
    """The run names it and stops, or with on_error="skip" warns and trains without it."""
    image = victim(broken, kind)
    image.unlink()
    image.write_bytes(b"\xff\xd8\xff no picture")
    options = {"train_cfg.max_epochs": 2} if kind == "pretrain" else {}
    CONFIGS[kind](broken, **options).dump("mine.py")
    refused("train.py", "mine.py", says=[str(image), "cannot", "on_error='skip'"], started=True)
    key = "dataset.on_error" if kind == "pretrain" else "dataset.pipeline.1.on_error"
    option = f"train_dataloader.{key}=skip"
    assert call_tool("train.py", "mine.py", "--work-dir", tmp_path / "rest", "--cfg-options", option) == 0
    assert list((tmp_path / "rest").glob("*.pth"))
    (log,) = (tmp_path / "rest").glob("*/*.log")
    assert re.search(rf"WARNING - skipped.*{image.name}", log.read_text())


def test_missing_image(broken, refused):
    image = victim(broken, "det")
    image.unlink()
    det_config(broken).dump("mine.py")
    says = [f"1 of 16 images do not exist, first {image}", "data_root and data_prefix"]
    refused("train.py", "mine.py", says=says)
    listed = [str(file) for file in sorted((broken / "coco/train2017").iterdir())]
    Path("list.txt").write_text("\n".join([*listed, str(image)]))
    pretrain_config(broken).dump("mine.py")
    says = ["list.txt lists 1 files that do not exist", str(image), "prefix"]
    refused("train.py", "mine.py", "--cfg-options", "train_dataloader.dataset.path=list.txt", says=says)


def test_missing_unreadable_and_wrong_labels(broken, refused):
    image = victim(broken, "seg")
    labels = broken / "ade/annotations/training" / f"{image.stem}.png"
    seg_config(broken).dump("mine.py")
    array = np.array(Image.open(labels))
    array[0, 0] = 7
    Image.fromarray(array).save(labels)
    says = [f"{labels} holds the label 7, but there are 4 classes", "stored from 1, 0 ignored", "num_classes"]
    refused("train.py", "mine.py", says=says, started=True)
    labels.write_bytes(b"no image at all")
    refused("train.py", "mine.py", says=[f"label map {labels} cannot be read", "repair it"], started=True)
    labels.unlink()
    says = ["1 of 16 images have no label map", f"({labels} does not exist)"]
    refused("train.py", "mine.py", says=says)


def test_unreadable_image_in_testing(broken, files, refused):
    image = sorted((broken / "ade/images/validation").iterdir())[3]
    image.unlink()
    image.write_bytes(b"")
    seg_config(broken, validate=True).dump("mine.py")
    refused("test.py", "mine.py", "seg.pth", says=[f"image {image} cannot be read"], started=True)


def change_coco(data: Path, change) -> Path:
    return change_json(data / "coco/annotations/instances_train2017.json", change)


def test_classes_that_the_file_does_not_have(broken, refused):
    """mmdet would silently drop their objects and renumber the rest."""
    det_config(broken).dump("mine.py")
    file = change_coco(broken, lambda content: content["categories"][1].update(name="box"))
    says = ["train_dataloader.dataset.metainfo.classes", f"{file} has no category square", "it has disc, box, triangle"]
    refused("train.py", "mine.py", says=says)
    # 80 classes of COCO, for which the configuration has no metainfo
    coco = ROOT / "det_configs/mask_rcnn_arm_ti_cpu.py"
    options = ("--cfg-options", f"data_root={broken}/coco", "model.backbone.init_cfg=None")
    refused("train.py", coco, *options, says=["has no category person, bicycle", "num_classes of the heads"])


def test_categories_are_found_wherever_they_stand(tmp_path):
    content = dict(images=[], annotations=[dict(note='"categories": [')], categories=[dict(id=1, name='a "]" é')])
    file = tmp_path / "coco.json"
    for order in (content, dict(reversed(content.items()))):
        for options in ({}, dict(indent=1), dict(ensure_ascii=False)):
            file.write_text(json.dumps(order, **options))
            assert read_categories(file) == content["categories"]


@pytest.mark.parametrize("text", ["", '{"images": [', "[]", '{"images": [], "annotations": []}'])
def test_broken_annotation_file(text, broken, refused):
    det_config(broken).dump("mine.py")
    file = broken / "coco/annotations/instances_train2017.json"
    file.write_text(text)
    refused("train.py", "mine.py", says=[str(file), "give a COCO instance file"])


def test_annotation_file_that_is_broken_behind_its_categories(broken, refused):
    det_config(broken).dump("mine.py")
    file = change_coco(broken, lambda content: content.update(annotations=content.pop("annotations")))
    file.write_text(file.read_text()[:-100])
    refused("train.py", "mine.py", says=["train_dataloader", "instances_train2017.json"])


def test_empty_training_set(broken, refused):
    det_config(broken).dump("mine.py")
    change_coco(broken, lambda content: content.update(annotations=[]))
    refused("train.py", "mine.py", says=["train_dataloader", "has no annotations"])
    for image in (broken / "ade/images/training").iterdir():
        image.unlink()
    seg_config(broken).dump("mine.py")
    refused("train.py", "mine.py", says=["train_dataloader", "training has no images: names must end in .jpg"])
    for image in (broken / "coco/train2017").iterdir():
        image.unlink()
    pretrain_config(broken).dump("mine.py")
    refused("train.py", "mine.py", says=["train_dataloader", "no image", str(broken / "coco/train2017")])


def test_empty_validation_set(broken, refused):
    for image in (broken / "ade/images/validation").iterdir():
        image.unlink()
    seg_config(broken, validate=True).dump("mine.py")
    refused("train.py", "mine.py", says=["val_dataloader", "validation has no images: names must end in .jpg"])


# --------------------------------------------------------------------------------- as real processes


def assert_one_line(stderr: str, *says: str) -> None:
    assert "Traceback" not in stderr, stderr
    (error,) = re.findall(r"^error: .*$", stderr, re.M)
    assert all(words in error for words in says), error


@pytest.mark.slow
def test_processes_exit_with_2(files, tmp_path):
    result = run_tool("train.py", files / "det.py", "--cfg-options", "model.backbone.depht=3", cwd=tmp_path)
    assert result.returncode == 2
    assert_one_line(result.stderr, "model.backbone.depht=3: ARM takes no such argument")
    assert list(tmp_path.rglob("*.*")) == []
    result = run_tool("test.py", files / "det.py", files / "cut.pth", "--work-dir", "work", cwd=tmp_path)
    assert result.returncode == 2
    assert_one_line(result.stderr, "cut.pth is not a complete PyTorch checkpoint")
    assert not (tmp_path / "work").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["det", "pretrain"])
def test_unreadable_image_met_by_a_worker(kind, broken, tmp_path):
    """The user sees the worker's message, not its traceback."""
    image = victim(broken, kind)
    image.unlink()
    image.write_bytes(b"no picture")
    CONFIGS[kind](broken, **{"train_dataloader.num_workers": 1}).dump(tmp_path / "mine.py")
    result = run_tool("train.py", "mine.py", cwd=tmp_path)
    assert result.returncode == 2
    assert_one_line(result.stderr, str(image), "on_error='skip'")


@pytest.mark.slow
def test_unreadable_image_met_by_the_second_process_only(broken, tmp_path):
    """Its line is printed although it is not rank 0."""
    image = sorted((broken / "coco/train2017").iterdir())[SeededSampler(range(16), seed=0)._order(0)[1]]
    image.unlink()
    image.write_bytes(b"no picture")
    cfg = pretrain_config(broken, **{"train_dataloader.batch_size": 1})
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.type != "ReconstructionHook"]  # it reads them all
    cfg.dump(tmp_path / "mine.py")
    result = run_tool("dist_train.sh", "mine.py", 2, cwd=tmp_path)
    assert result.returncode != 0
    # the first process may add this
    ours = re.sub(r"^error: another process has stopped.*\n", "", result.stderr, flags=re.M)
    assert_one_line(ours, str(image), "on_error='skip'")


def test_the_traceback_is_one_variable_away(files, monkeypatch, tmp_path):
    from arm_toolkit.errors import ConfigError

    monkeypatch.setenv("ARM_TRACEBACK", "1")
    with pytest.raises(ConfigError, match="depht"):
        call_tool("train.py", files / "seg.py", "--work-dir", tmp_path, "--cfg-options", "model.backbone.depht=3")


def test_fixture_configurations_are_good(files, tmp_path):
    """The inputs that the tests above break work when they are intact."""
    for kind in CONFIGS:
        Config.fromfile(files / f"{kind}.py")
    assert torch.load(files / "seg.pth", weights_only=True)["meta"]["iter"] == 1
    assert call_tool("test.py", files / "seg.py", files / "seg.pth", "--work-dir", tmp_path) == 0
