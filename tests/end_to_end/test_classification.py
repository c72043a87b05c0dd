"""Classification: class folders, mixup, accuracy, every cls_configs file, finetuning end to end."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from PIL import Image

from arm_backbone import ARMClassifier
from arm_images.errors import DataError
from arm_toolkit.datasets.class_folder import ClassFolder
from arm_toolkit.datasets.samplers import SampleIndex
from arm_toolkit.engine.checks import check_num_classes
from arm_toolkit.engine.config import load_config
from arm_toolkit.errors import ConfigError
from arm_toolkit.evaluation.accuracy import Accuracy
from arm_toolkit.evaluation.knn import vote
from arm_toolkit.models.mixup import MixupPreprocessor
from tests.helpers.paths import ROOT
from tests.helpers.runs import train
from tests.helpers.small_models import VMAMBA_ARCH
from tests.helpers.tools import call_tool, invoke

CONFIGS = sorted(p.name for p in (ROOT / "cls_configs").glob("*.py"))
SMALL = dict(embed_dims=32, num_layers=4)
TRAINING = dict(is_training=True, input_size=32, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25, re_mode="pixel")
TESTING = dict(is_training=False, input_size=32, crop_pct=1.0)


def picture(path, seed=0, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)).save(path)


@pytest.fixture
def tree(tmp_path):
    """Class folders of two classes; the validation split has only one of them."""
    for i, name in enumerate(("train/ant/a.png", "train/ant/b.jpg", "train/bee/c.png", "val/bee/d.png")):
        picture(tmp_path / "data" / name, i)
    return tmp_path / "data"


def test_classes_are_numbered_by_the_training_folders(tree):
    """A class without validation images does not shift the numbers of the others."""
    train_set, val_set = (ClassFolder(str(tree), split, TESTING) for split in ("train", "val"))
    assert train_set.classes == val_set.classes == ["ant", "bee"]
    assert train_set.labels == [0, 0, 1] and val_set.labels == [1]
    item = val_set[0]
    assert item["inputs"].shape == (3, 32, 32) and item["inputs"].dtype == torch.float32 and item["data_samples"] == 1


def test_augmentation_is_a_function_of_the_seed(tree):
    dataset = ClassFolder(str(tree), "train", TRAINING)
    one, same, other = (dataset[SampleIndex(0, seed)]["inputs"] for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_squash_shows_the_border_and_center_does_not(tmp_path):
    """The reference code's test resize keeps the borders, which an aspect-preserving resize cuts off."""
    image = np.zeros((64, 128, 3), np.uint8)
    image[:, :16] = 255  # a white left border
    (tmp_path / "train/x").mkdir(parents=True)
    Image.fromarray(image).save(tmp_path / "train/x/a.png")
    seen = {
        mode: ClassFolder(str(tmp_path), "train", TESTING | dict(crop_mode=mode))[0]["inputs"][0, 16, 0].item()
        for mode in ("squash", "center")
    }
    assert seen["squash"] > 2 and seen["center"] < -2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: shutil.rmtree(d / "val"), "val does not exist; set --cfg-options data_root"),
        (lambda d: picture(d / "val/wasp/e.png"), "wasp is not a class: .*train has no such folder"),
        (lambda d: (d / "val/bee/d.png").unlink(), "val.* is a class without an image"),
    ],
)
def test_broken_trees_are_named(tree, damage, message):
    damage(tree)
    with pytest.raises(DataError, match=message):
        ClassFolder(str(tree), "val", TESTING)


def test_unreadable_image_is_fatal_or_replaced_with_its_own_label(tree):
    (tree / "train/ant/b.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot read .*b.jpg.*on_error='skip'"):
        ClassFolder(str(tree), "train", TESTING)[1]
    item = ClassFolder(str(tree), "train", TESTING, on_error="skip")[1]
    assert item["data_samples"] == 1  # the next readable file is a bee
    torch.testing.assert_close(item["inputs"], ClassFolder(str(tree), "train", TESTING)[2]["inputs"])


def test_number_of_classes_is_checked_before_training(tree):
    cfg = load_config(str(ROOT / "cls_configs/arm_b_in1k.py"), {"data_root": str(tree)})
    says = "model.num_classes=1000, model.data_preprocessor.mixup.num_classes=1000, but .*train has 2 class folders"
    with pytest.raises(ConfigError, match=says):
        check_num_classes(cfg)
    cfg.model.num_classes = cfg.model.data_preprocessor.mixup.num_classes = 2
    check_num_classes(cfg)


def test_mixup_makes_distributions_in_training_only():
    torch.manual_seed(0)
    np.random.seed(0)
    preprocess = MixupPreprocessor(dict(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=4))
    images, labels = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 8, 8).clone(), torch.tensor([0, 1, 2, 3])
    mixed = preprocess(dict(inputs=images.clone(), data_samples=labels), True)
    torch.testing.assert_close(mixed["data_samples"].sum(1), torch.ones(4))
    share = mixed["data_samples"][0, 3].item()  # of the last image's class in the first target, smoothing included
    assert 0.025 < share < 0.975
    plain = preprocess(dict(inputs=images, data_samples=labels), False)
    assert torch.equal(plain["inputs"], images) and torch.equal(plain["data_samples"], labels)
    with pytest.raises(DataError, match="a batch has 3; give an even batch_size"):
        preprocess(dict(inputs=images[:3], data_samples=labels[:3]), True)


def test_accuracy_by_hand():
    metric = Accuracy()
    logits = torch.zeros(3, 7)
    logits[0, 2] = 1  # right
    logits[1, [0, 1, 2, 3]] = 1
    logits[1, 6] = 0.5  # fifth
    logits[2, :6] = 1  # seventh
    metric.process(dict(data_samples=torch.tensor([2, 6, 6])), list(logits))
    result = metric.compute_metrics(metric.results)
    assert result == pytest.approx(dict(top1=100 / 3, top5=200 / 3))
    metric.results.clear()
    metric.process(dict(data_samples=torch.tensor([0])), [torch.tensor([0.1, 0.9])])
    assert metric.compute_metrics(metric.results) == dict(top1=0.0)


def test_nearest_neighbours_by_hand():
    train_features = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), dim=1)
    labels = torch.tensor([0, 0, 1])
    queries = torch.nn.functional.normalize(torch.tensor([[1.0, 0.05], [0.1, 1.0]]), dim=1)
    assert vote(train_features, labels, queries, k=1, temperature=0.07).argmax(1).tolist() == [0, 1]
    # with three votes, two distant neighbours outweigh a near one only at a high temperature
    assert vote(train_features, labels, queries, k=3, temperature=0.07).argmax(1).tolist() == [0, 1]
    assert vote(train_features, labels, queries, k=3, temperature=100.0).argmax(1).tolist() == [0, 0]
    assert vote(train_features, labels, queries, k=99, temperature=0.07, chunk=1).shape == (2, 2)


# ------------------------------------------------------------------------------------ configurations


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_at_full_size(name):
    """Runs on the meta device, which allocates and computes nothing."""
    cfg = load_config(str(ROOT / "cls_configs" / name))
    size = cfg.train_dataloader.dataset.transform.input_size
    assert size == cfg.val_dataloader.dataset.transform.input_size
    cfg.model.init_cfg = None
    with torch.device("meta"):
        model = MODELS.build(cfg.model).eval()
        images = torch.empty(2, 3, size, size)
        assert model(images).shape == (2, cfg.model.num_classes)
        if "img_size" not in cfg.model:  # of an encoder without a position table of ours
            return
        tokens = model.forward_features(images).shape[1]
    assert size == cfg.model.img_size
    stride = cfg.model.get("patch_stride", 16)
    side = (size - 16) // stride + 1
    assert tokens == side**2 + (cfg.model.cls_token is not None)
    assert "448" not in name or side == 55


# without those of timm's models: tests/arm_backbone/test_timm_backbone.py
@pytest.mark.parametrize("name", [name for name in CONFIGS if not name.startswith(("aim", "deit", "regnety"))])
def test_small_sibling_takes_a_step(name):
    cfg = load_config(str(ROOT / "cls_configs" / name)).model
    cfg.update(num_classes=4, init_cfg=None, drop_path_rate=0.0)
    cfg.update(dict(arch=VMAMBA_ARCH) if cfg.type == "VMambaClassifier" else dict(arch=SMALL, img_size=64))
    if "mixup" in cfg.data_preprocessor:
        cfg.data_preprocessor.mixup.num_classes = 4
    torch.manual_seed(0)
    model = MODELS.build(cfg).train()
    data = model.data_preprocessor(
        dict(inputs=torch.randn(4, 3, 64, 64), data_samples=torch.tensor([0, 1, 2, 3])), training=True
    )
    model(**data, mode="loss")["loss"].backward()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == trained
    assert trained == {"head.1.weight", "head.1.bias"} if "linear" in name else len(trained) > 40


def test_recipes_of_the_paper():
    base, large, huge = (load_config(str(ROOT / f"cls_configs/arm_{size}_in1k.py")) for size in "blh")
    for cfg in (base, large, huge):
        steps = cfg.optim_wrapper.get("accumulative_counts", 1)
        assert 8 * cfg.train_dataloader.batch_size * steps == 1024
        assert cfg.optim_wrapper.optimizer.lr == pytest.approx(5e-4 * 1024 / 256)
        assert cfg.custom_hooks[0].decay == 0.99992 and cfg.train_cfg.max_epochs == 100
    assert [cfg.model.drop_path_rate for cfg in (base, large)] == [0.1, 0.3]
    assert [cfg.optim_wrapper.paramwise_cfg.layer_decay for cfg in (base, large)] == [0.65, 0.75]
    mixup = base.model.data_preprocessor.mixup
    assert (mixup.mixup_alpha, mixup.cutmix_alpha, mixup.label_smoothing) == (0.8, 1.0, 0.1)
    transform = base.train_dataloader.dataset.transform
    assert (transform.auto_augment, transform.re_prob) == ("rand-m9-mstd0.5-inc1", 0.25)


# ------------------------------------------------------------------------------------ end to end


@pytest.fixture(scope="module")
def folders(shapes, tmp_path_factory):
    out = tmp_path_factory.mktemp("classes") / "classes"
    done = invoke("prepare_data.py", "classes", shapes / "coco", out)
    assert done.returncode == 0, done.stderr
    return out


def test_class_folders_are_the_objects_of_the_annotations(shapes, folders):
    for split, name in (("train", "train2017"), ("val", "val2017")):
        content = json.loads((shapes / f"coco/annotations/instances_{name}.json").read_text())
        names = {category["id"]: category["name"] for category in content["categories"]}
        large = [a for a in content["annotations"] if min(a["bbox"][2:]) >= 16]
        expected = sorted((names[a["category_id"]], a["id"]) for a in large)
        found = sorted((p.parent.name, int(p.stem.split("_")[-1])) for p in (folders / split).rglob("*.jpg"))
        assert found == expected
    done = invoke("prepare_data.py", "classes", shapes / "coco", folders)
    assert done.returncode == 2 and "exists; remove it" in done.stderr


def small_config(folders, **model) -> Config:
    cfg = load_config(str(ROOT / "cls_configs/quickstart_arm.py"), {"data_root": str(folders)})
    cfg.model.update(arch=SMALL, img_size=64, init_cfg=None, drop_path_rate=0.2, **model)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.batch_size = 8
        loader.dataset.transform.input_size = 64
    cfg.train_dataloader.dataset.transform.update(TRAINING | dict(input_size=64))
    cfg.model.data_preprocessor.mixup.update(prob=1.0, mixup_alpha=0.8, cutmix_alpha=1.0)
    cfg.train_cfg.update(max_epochs=2, val_interval=1)
    cfg.optim_wrapper.accumulative_counts = 2
    cfg.train_dataloader.num_batch_per_epoch = 4  # the epoch ends with an optimizer step: no partial gradient sums
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint.update(interval=1, max_keep_ckpts=-1)
    cfg.log_processor.window_size = 1
    return cfg


def test_resumed_finetuning_continues_exactly(folders, tmp_path):
    """The run uses a moving average, gradient accumulation, mixup and augmentation."""
    cfg = small_config(folders)
    train(cfg, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    (tmp_path / "half/epoch_2.pth").unlink()
    train(cfg, tmp_path / "half", "--resume", str(tmp_path / "half/epoch_1.pth"))
    first, second = (torch.load(tmp_path / d / "epoch_2.pth", weights_only=True) for d in ("whole", "half"))
    for part in ("state_dict", "ema_state_dict"):
        assert first[part].keys() == second[part].keys()
        for name, tensor in first[part].items():
            torch.testing.assert_close(second[part][name], tensor, atol=1e-6, rtol=0)
    average, weights = first["state_dict"], first["ema_state_dict"]
    assert not torch.equal(average["head.weight"], weights["module.head.weight"])


@pytest.mark.slow(first=True)
def test_finetuning_learns(tmp_path):
    """The trained model, k-nearest neighbours and a linear probe all score above 65 %; chance is 33 %."""
    data, work = tmp_path / "shapes", tmp_path / "run"
    assert call_tool("prepare_data.py", "shapes", data) == 0
    assert call_tool("prepare_data.py", "classes", data / "coco", tmp_path / "classes") == 0
    config = ROOT / "cls_configs/quickstart_arm.py"
    options = [f"data_root={tmp_path / 'classes'}", "model.init_cfg=None"]
    options += ["train_cfg.max_epochs=7", "optim_wrapper.optimizer.lr=2e-3"]
    done = invoke("train.py", config, "--work-dir", work, "--cfg-options", *options)
    assert done.returncode == 0, done.stderr
    checkpoint = work / "epoch_7.pth"
    done = invoke("test.py", config, checkpoint, "--work-dir", tmp_path / "test", "--cfg-options", *options)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split("accuracy/top1: ")[-1].split()[0]) > 65
    done = invoke("knn.py", config, checkpoint, "--cfg-options", *options)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split("top-1 ")[-1]) > 65
    probe = f"""
_base_ = "{config}"
model = dict(type="LinearProbe", init_cfg=dict(checkpoint="{checkpoint}"))
custom_hooks = []
optim_wrapper = dict(optimizer=dict(lr=0.01))
"""
    (tmp_path / "probe.py").write_text(probe)
    options = [o for o in options if not o.startswith(("model.init_cfg", "train_cfg", "optim_wrapper"))]
    options += ["train_cfg.max_epochs=2", "default_hooks.checkpoint.interval=1"]
    done = invoke("train.py", tmp_path / "probe.py", "--work-dir", tmp_path / "probe", "--cfg-options", *options)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split("accuracy/top1: ")[-1].split()[0]) > 65


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("train.py", ["model.arch=gigantic"], "arch='gigantic' is unknown"),
        ("train.py", ["model.global_pol=avg"], "model.*global_pol"),
        ("train.py", ["model.cls_token=None", "model.global_pool=token"], "needs a class token"),
        ("train.py", ["train_dataloader.dataset.transform.input_sise=32"], "input_sise"),
        ("knn.py", ["model.arch=gigantic"], "arch='gigantic' is unknown"),
    ],
)
def test_bad_arguments_are_one_line(folders, tmp_path, script, arguments, message, capfd):
    weights = tmp_path / "weights.pth"
    torch.save(ARMClassifier(SMALL, img_size=64, num_classes=3).state_dict(), weights)
    more = [weights] if script == "knn.py" else ["--work-dir", tmp_path / "run"]
    options = [f"data_root={folders}", "model.init_cfg=None", *arguments]
    status = call_tool(script, ROOT / "cls_configs/quickstart_arm.py", *more, "--cfg-options", *options)
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert status == 2 and len(errors) == 1
    assert re.search(message, errors[0]), errors
    assert not (tmp_path / "run").exists()


def test_nothing_to_draw(folders, tmp_path, capfd):
    weights = tmp_path / "weights.pth"
    torch.save(dict(weight=torch.zeros(1)), weights)
    arguments = ["--show-dir", tmp_path / "pictures", "--work-dir", tmp_path / "run"]
    config = ROOT / "cls_configs/quickstart_arm.py"
    assert call_tool("test.py", config, weights, *arguments, "--cfg-options", f"data_root={folders}") == 2
    assert "classification results are not drawn; use --out" in capfd.readouterr().err
