"""tools/publish.py: folders that hold all that a reader needs, and nothing of the author's machine."""

import errno
import json
import os
import re
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import safe_open

from arm_backbone.checkpoint.accounting import describe_mismatch
from arm_backbone.checkpoint.convert import convert
from arm_backbone.checkpoint.errors import CheckpointError
from arm_backbone.checkpoint.files import read_checkpoint
from arm_backbone.checkpoint.folder import sha256_of
from arm_backbone.checkpoint.writing import WriteError
from arm_backbone.classifier import ARMClassifier
from arm_backbone.vim import VimClassifier
from arm_images.errors import DataError
from arm_pretrain import ARMPretrainer, MAEPretrainer
from arm_toolkit.errors import ConfigError
from arm_toolkit.inference import load
from arm_toolkit.inference.build import build
from arm_toolkit.inference.publish import Statements, publish
from arm_toolkit.inference.published import is_published, read_published
from arm_toolkit.inference.published_config import from_json, to_json
from arm_toolkit.inference.timm_form import arguments_of, registered_name
from tests.helpers.full_disk import file_size_limit
from tests.helpers.hub_server import Hub, serve, use
from tests.helpers.published import CLASSES, PALETTE, config_of, publish_small, save_checkpoint
from tests.helpers.small_models import ARCH
from tests.helpers.tools import invoke

TASKS = dict(det="detection", seg="segmentation", cls="classification", backbone=None)
pytestmark = pytest.mark.xdist_group("published")


@pytest.fixture(scope="module")
def made(shapes, tmp_path_factory) -> Path:
    """A published folder of every kind, in KIND/published."""
    folder = tmp_path_factory.mktemp("published")
    for kind in TASKS:
        publish_small(kind, shapes, folder / kind, datasets=("made shapes",), licence="cc-by-4.0")
    return folder


@pytest.mark.parametrize("kind", TASKS)
def test_a_folder_holds_the_model(kind, made):
    published = read_published(made / kind / "published")
    assert is_published(made / kind / "published") and not is_published(made / kind)
    assert published.task == TASKS[kind] and published.classes == list(CLASSES.get(kind, ()))
    assert published.palette == (PALETTE if kind == "seg" else None)
    model, original = build(published.folder)[0], read_checkpoint(made / kind / "epoch_2.pth")["state_dict"]
    state = model.state_dict()
    new = {"norm.weight", "norm.bias"} if kind == "backbone" else set()
    assert not describe_mismatch({k: v.shape for k, v in state.items()}, {k: v.shape for k, v in original.items()}, new)
    assert all(torch.equal(value, state[name]) for name, value in original.items())
    assert not model.training


@pytest.mark.parametrize("kind", TASKS)
def test_nothing_of_the_author_is_in_it(kind, made, shapes):
    folder = made / kind / "published"
    for file in folder.iterdir():
        text = file.read_bytes().decode(errors="replace")
        for private in (str(shapes), str(made), "/home/me", str(Path.home()), "work_dir", "data_root", "ann_file"):
            assert private not in text, f"{file.name} has {private}"
    config = json.loads((folder / "config.json").read_text())["arm"]["config"]
    assert not re.search(r'"(/|~|\w+://)', json.dumps(config))
    for key in ("optim_wrapper", "init_cfg", "backend_args", "train_dataloader", "LoadAnnotations", "load_from"):
        assert key not in json.dumps(config)


@pytest.mark.parametrize("kind", ["det", "seg"])
def test_an_image_is_prepared_as_in_the_test(kind, made, shapes):
    published, cfg = read_published(made / kind / "published"), config_of(kind, shapes)
    steps = [step for step in cfg.test_dataloader.dataset.pipeline if step.type != "LoadAnnotations"]
    assert published.config.test_pipeline == steps
    assert published.config.test_dataloader.dataset.pipeline == steps
    assert all(type(step.get("scale", ())) is tuple for step in published.config.test_pipeline)
    assert published.config.model.data_preprocessor == cfg.model.data_preprocessor
    assert published.config.test_dataloader.dataset.metainfo.classes == CLASSES[kind]


def test_files_are_described(made):
    folder = made / "seg/published"
    config = json.loads((folder / "config.json").read_text())["arm"]
    assert config["sha256"] == sha256_of(folder / "model.safetensors")
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert "ema_state_dict" not in file.keys()  # noqa: SIM118
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.datasets == ["made-shapes"]
    assert card.data.pipeline_tag == "image-segmentation" and card.data.library_name == "arm_toolkit"
    assert card.data.eval_results is None and "They are not known" in card.text
    assert config["sha256"] in card.text and "4: background, disc, square, triangle." in card.text
    assert "UPerHead" not in card.text and "EncoderDecoder with the backbone ARM" in card.text
    modes = {path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert len(modes) == 1, "a reader must be able to read all files"


# ------------------------------------------------------------------------------------------------------ metrics


def log(folder: Path, lines: list[dict]) -> None:
    (folder / "20260101_000000/vis_data").mkdir(parents=True)
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / "20260101_000000/vis_data/scalars.json").write_text(f'{text}{{"cut off')


VALIDATED = [
    dict(lr=1e-3, loss=2.0, epoch=1, iter=4, step=4),
    {"coco/bbox_mAP": 0.25, "coco/bbox_mAP_l": -1.0, "time": 0.1, "step": 1},
    {"coco/bbox_mAP": 0.5, "coco/segm_mAP": 0.375, "data_time": 0.1, "time": 0.1, "step": 2},
]


@pytest.mark.slow
def test_metrics_are_those_of_the_checkpoint(shapes, tmp_path):
    for name, expected in (("epoch_2.pth", 0.5), ("best_coco_bbox_mAP_epoch_1.pth", 0.25)):
        folder = tmp_path / name
        folder.mkdir()
        log(folder, VALIDATED)
        publish(str(save_checkpoint("det", shapes, folder / name)), folder / "out", None, Statements(("a",)))
        ours = json.loads((folder / "out/config.json").read_text())["arm"]
        assert ours["metrics"]["coco/bbox_mAP"] == expected and "time" not in ours["metrics"]
        assert "coco/bbox_mAP_l" not in ours["metrics"]  # -1: undefined
        assert ours["metrics_source"] == f"validation at epoch {2 if expected == 0.5 else 1}"
        results = {result.metric_name: result for result in ModelCard.load(folder / "out/README.md").data.eval_results}
        assert results["box AP"].metric_value == expected and results["box AP"].dataset_name == "a"
        assert [json.loads(line) for line in (folder / "out/log.jsonl").read_text().splitlines()] == VALIDATED


@pytest.mark.slow
def test_a_test_counts_before_the_validation(shapes, tmp_path):
    log(tmp_path, VALIDATED)
    checkpoint = save_checkpoint("det", shapes, tmp_path / "epoch_2.pth")
    for number, tested in enumerate(("epoch_2.pth", "epoch_1.pth"), 1):
        folder = tmp_path / f"test/2026010{number}"
        folder.mkdir(parents=True)
        (folder / "a.log").write_text(f"x - All 9 tensors of the model loaded from work_dirs/a/{tested}\n")
        (folder / "a.json").write_text(json.dumps({"coco/bbox_mAP": number / 10}))
    publish(str(checkpoint), tmp_path / "out", None, Statements())
    ours = json.loads((tmp_path / "out/config.json").read_text())["arm"]
    assert ours["metrics"] == {"coco/bbox_mAP": 0.1} and ours["metrics_source"] == "evaluation with tools/test.py"


@pytest.mark.slow
def test_the_moving_average_is_published(shapes, tmp_path):
    checkpoint = save_checkpoint("seg", shapes, tmp_path / "iter_8.pth")
    contents = torch.load(checkpoint, weights_only=True)
    weights = {f"module.{name}": value + 1 for name, value in contents["state_dict"].items()}
    torch.save(contents | dict(ema_state_dict=weights), checkpoint)
    published = publish(str(checkpoint), tmp_path / "out", None, Statements())
    written = read_checkpoint(published.weights)["state_dict"]
    assert all(torch.equal(value, written[name]) for name, value in contents["state_dict"].items())
    assert "moving average" in (tmp_path / "out/README.md").read_text()


# --------------------------------------------------------------------------------------------- folders that exist


@pytest.mark.slow
def test_an_earlier_folder_is_replaced(shapes, tmp_path):
    publish_small("seg", shapes, tmp_path)
    first = sha256_of(tmp_path / "published/config.json")
    publish(str(tmp_path / "epoch_2.pth"), tmp_path / "published", None, Statements(licence="mit"))
    assert sha256_of(tmp_path / "published/config.json") != first
    assert {path.name for path in tmp_path.iterdir()} == {"epoch_2.pth", "published"}


@pytest.mark.slow
def test_a_failure_keeps_an_earlier_folder(shapes, tmp_path):
    publish_small("seg", shapes, tmp_path)
    before = {path.name: sha256_of(path) for path in (tmp_path / "published").iterdir()}
    checkpoint = torch.load(tmp_path / "epoch_2.pth", weights_only=True)
    del checkpoint["state_dict"]["decode_head.conv_seg.weight"]
    torch.save(checkpoint, tmp_path / "epoch_2.pth")
    with pytest.raises(CheckpointError, match="decode_head.conv_seg.weight"):
        publish(str(tmp_path / "epoch_2.pth"), tmp_path / "published", None, Statements())
    assert {path.name: sha256_of(path) for path in (tmp_path / "published").iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"epoch_2.pth", "published"}


@pytest.mark.parametrize("name", ["notes.txt", "config.json", ".git/config"])
def test_a_folder_of_somebody_else_is_kept(name, shapes, tmp_path):
    file = tmp_path / "mine" / name
    file.parent.mkdir(parents=True)
    file.write_text('{"architecture": "resnet50"}')
    with pytest.raises(ConfigError, match=f"mine exists and holds {name.split('/')[0]}, which would be lost"):
        publish(str(tmp_path / "absent.pth"), tmp_path / "mine", None, Statements())
    assert file.read_text() == '{"architecture": "resnet50"}' and len(list(file.parent.iterdir())) == 1


@pytest.mark.slow
def test_an_addition_to_our_folder_is_kept(shapes, tmp_path):
    publish_small("seg", shapes, tmp_path)
    (tmp_path / "published/LICENSE").write_text("mine")
    with pytest.raises(ConfigError, match="holds LICENSE, which would be lost"):
        publish(str(tmp_path / "epoch_2.pth"), tmp_path / "published", None, Statements())
    assert read_published(tmp_path / "published").task == "segmentation"


# ------------------------------------------------------------------------------------- what cannot be published


@pytest.mark.slow
def test_what_only_the_author_has_is_named(shapes, tmp_path):
    def changed(change) -> str:
        cfg = config_of("seg", shapes)
        change(cfg)
        return str(save_checkpoint("seg", shapes, tmp_path / "iter_8.pth", cfg=cfg.pretty_text))

    def add_path(cfg) -> None:
        cfg.model.decode_head.loss_decode.class_weight = "/home/me/weights.txt"

    def remove_data(cfg) -> None:
        cfg.test_dataloader = cfg.val_dataloader = None

    for change, message in (
        (add_path, "model.decode_head.loss_decode.class_weight='/home/me/weights.txt' names a file of this machine"),
        (remove_data, "has no test_dataloader with a pipeline"),
    ):
        with pytest.raises(ConfigError, match=message):
            publish(changed(change), tmp_path / "out", None, Statements())
        assert not (tmp_path / "out").exists()


def test_a_tuple_survives_json():
    value = dict(a=(1, (2.5, None)), b=[dict(c=True)], d="x")
    assert from_json(json.loads(json.dumps(to_json(value)))) == value
    for wrong in (dict(a={1: 2}), dict(a=float("inf")), dict(tuple=[1]), dict(a=b"x")):
        with pytest.raises(ConfigError, match="cannot be written as JSON"):
            to_json(wrong)


# ------------------------------------------------------------------------------------------------ timm and hub


@pytest.mark.parametrize("kind", ["cls", "backbone"])
@torch.no_grad()
def test_timm_reads_the_folder(kind, made, tmp_path, monkeypatch):
    folder = made / kind / "published"
    images = torch.randn(2, 3, 64, 64)
    expected = build(folder)[0](images)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with serve(Hub(files={"me/model": files})) as hub:
        use(monkeypatch, tmp_path, hub.url)
        for source in (f"local-dir:{folder}", "hf-hub:me/model", "hf-hub:me/model@main"):
            model = timm.create_model(source, pretrained=True).eval()
            assert torch.equal(model(images), expected)
    assert model.pretrained_cfg.get("label_names") == (list(CLASSES["cls"]) if kind == "cls" else None)
    assert model.pretrained_cfg["input_size"] == (3, 64, 64) or model.pretrained_cfg["input_size"] == [3, 64, 64]
    finetuned = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7)
    assert finetuned(images).shape == (2, 7)
    levels = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True)(images)
    assert [tuple(level.shape) for level in levels] == [(2, 32, 4, 4)] * 3


def test_a_folder_goes_to_the_hub_and_comes_back(made, tmp_path, monkeypatch):
    with serve(Hub()) as hub:
        use(monkeypatch, tmp_path / "cache", hub.url)
        checkpoint = made / "seg/epoch_2.pth"
        done = invoke("publish.py", checkpoint, tmp_path / "out", "--license", "mit", "--push", "me/shapes")
        assert done.returncode == 0, done.stderr
        assert f"uploaded to {hub.url}/me/shapes" in done.stdout
        published = read_published("hf://me/shapes")
        (tmp_path / "out/README.md").write_text("changed")
        assert invoke("publish.py", checkpoint, tmp_path / "out", "--push", "me/shapes").returncode == 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.files["me/shapes"] == files
    assert published.task == "segmentation" and published.classes == list(CLASSES["seg"])
    assert torch.equal(
        build(published.folder)[0].decode_head.conv_seg.weight,
        read_checkpoint(checkpoint)["state_dict"]["decode_head.conv_seg.weight"],
    )


def test_an_upload_that_fails_is_one_line(made, tmp_path, monkeypatch):
    checkpoint = made / "backbone/epoch_2.pth"
    for arguments, offline, message in (
        ("me/model", True, "HF_HUB_OFFLINE is set"),
        ("me/model", False, "127.0.0.1:9/me/model cannot be reached"),
    ):
        use(monkeypatch, tmp_path / "cache", offline=offline)
        done = invoke("publish.py", checkpoint, tmp_path / "out", "--push", arguments)
        assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert read_published(tmp_path / "out").task is None  # the folder is complete


# ---------------------------------------------------------------------------------------------- further checkpoints


@pytest.mark.parametrize(
    ("arguments", "name", "extra"),
    [
        (dict(arch="base", img_size=224), "arm_base_patch16_224", {}),
        (dict(arch="base", img_size=384, patch_size=16, scans=4), "arm_base_patch16_384", {}),
        (dict(arch=dict(embed_dims=384, num_layers=12), img_size=(224, 224)), "arm_small_patch16_224", {}),
        (dict(arch="base", img_size=448, patch_stride=8), "arm_base_patch16_stride8_448", {}),
        (dict(arch="base", cls_token="tail"), "arm_base_patch16_224", dict(cls_token="tail")),
        (dict(arch="base", cls_token=None), "arm_base_patch16_224", dict(cls_token="none")),
        (dict(arch="large", img_size=(64, 96)), "arm_large_patch16_224", dict(img_size=(64, 96))),
        (
            dict(arch="tiny", img_size=448, patch_stride=8),
            "arm_tiny_patch16_224",
            dict(img_size=(448, 448), patch_stride=8),
        ),
        (dict(arch="tiny", patch_size=8), "arm_tiny_patch16_224", dict(img_size=(224, 224), patch_size=8)),
    ],
)
def test_the_name_in_timm(arguments, name, extra):
    found, given = registered_name(arguments)
    assert (found, given) == (name, extra)
    if arguments["arch"] != "large":
        with torch.device("meta"):
            model, wanted = timm.create_model(found, **given), ARMClassifier(**arguments)
        shapes = [{key: value.shape for key, value in m.state_dict().items()} for m in (model, wanted)]
        assert shapes[0] == shapes[1]
        for key in ("img_size", "patch_size", "patch_stride", "scans", "cls_token_position"):
            assert getattr(model, key) == getattr(wanted, key), key


@torch.no_grad()
def test_a_file_of_the_authors(tmp_path):
    """Their classifier's moving average, without names of classes; timm computes the same."""
    torch.manual_seed(0)
    model = ARMClassifier(ARCH, img_size=64, num_classes=5).eval()
    official = convert(model.state_dict(), "official-finetune")[0]
    worse = {name: torch.zeros_like(tensor) for name, tensor in official.items()}
    torch.save(dict(model=worse, model_ema=official), tmp_path / "checkpoint-99.pth")
    published = publish(str(tmp_path / "checkpoint-99.pth"), tmp_path / "out", None, Statements())
    assert published.task == "classification" and published.classes == []
    images = torch.randn(2, 3, 64, 64)
    expected = model(images)
    assert torch.equal(timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()(images), expected)
    assert torch.equal(build(tmp_path / "out")[0](images), expected)
    assert load(tmp_path / "out").classes == tuple(f"class {number}" for number in range(5))


@torch.no_grad()
def test_a_vim_of_its_authors_and_a_pretrained_one(tmp_path):
    """timm computes the same as the model itself; a pretrained one gets both directions and no class token."""
    torch.manual_seed(0)
    model, images = VimClassifier(ARCH, img_size=64, num_classes=5).eval(), torch.randn(2, 3, 64, 64)
    torch.save(dict(model=convert(model.state_dict(), "official-finetune")[0]), tmp_path / "vim.pth")
    publish(str(tmp_path / "vim.pth"), tmp_path / "vim", None, Statements())
    found = timm.create_model(f"local-dir:{tmp_path / 'vim'}", pretrained=True).eval()
    assert isinstance(found, VimClassifier) and torch.equal(found(images), model(images))
    assert torch.equal(build(tmp_path / "vim")[0](images), model(images))
    assert "Vim embed_dims 32, num_layers 4" in (tmp_path / "vim/README.md").read_text()
    state = ARMPretrainer(ARCH, decoder_dim=64, encoder="Vim").state_dict()
    torch.save(dict(state_dict=state), tmp_path / "pretrained.pth")
    publish(str(tmp_path / "pretrained.pth"), tmp_path / "pretrained", None, Statements())
    found = timm.create_model(f"local-dir:{tmp_path / 'pretrained'}", pretrained=True)
    assert (found.scans, found.cls_token_position, found.global_pool) == (2, None, "avg")


def test_a_pretraining_model_becomes_a_backbone(tmp_path):
    model = ARMPretrainer(ARCH, img_size=64, cluster_side=2, decoder_dim=64)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / "epoch_4.pth")
    publish(str(tmp_path / "epoch_4.pth"), tmp_path / "out", None, Statements())
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert loaded.scans == 4 and loaded.cls_token_position is None
    expected = convert(model.state_dict(), "backbone")[0]
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in expected.items())
    card = (tmp_path / "out/README.md").read_text()
    assert "one scan copied to 4" in card and "2 tensors new: learned in finetuning (norm.bias, norm.weight)" in card


@pytest.mark.slow
def test_without_a_configuration(shapes, tmp_path):
    checkpoint = save_checkpoint("seg", shapes, tmp_path / "iter_8.pth", cfg=None)
    with pytest.raises(ConfigError, match="iter_8.pth is a detector or segmentor that does not hold its configuration"):
        publish(str(checkpoint), tmp_path / "out", None, Statements())
    config_of("seg", shapes).dump(tmp_path / "seg.py")
    assert publish(str(checkpoint), tmp_path / "out", str(tmp_path / "seg.py"), Statements()).task == "segmentation"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["det", "cls"])
def test_an_example_is_drawn(kind, shapes, tmp_path):
    image = next((shapes / "coco/val2017").iterdir())
    Image.open(image).resize((1500, 900)).save(tmp_path / "wide.jpg", comment=b"secret", exif=b"Exif\x00\x00secret")
    publish_small(kind, shapes, tmp_path, example=tmp_path / "wide.jpg")
    drawn = tmp_path / "published/example.jpg"
    assert Image.open(drawn).size == (1280, 768) and b"secret" not in drawn.read_bytes()
    assert "(example.jpg)" in (tmp_path / "published/README.md").read_text()


@pytest.mark.slow
def test_an_example_that_cannot_be_drawn(shapes, tmp_path):
    (tmp_path / "note.txt").write_text("no image")
    for kind, message in (("backbone", "a backbone predicts nothing"), ("seg", "note.txt cannot be read")):
        with pytest.raises((ConfigError, DataError), match=message):
            publish_small(kind, shapes, tmp_path, example=tmp_path / "note.txt")
        assert not (tmp_path / "published").exists()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_a_failure_of_the_last_step_keeps_the_earlier_folder(killed, shapes, tmp_path, monkeypatch):
    publish_small("seg", shapes, tmp_path)
    before = {path.name: sha256_of(path) for path in (tmp_path / "published").iterdir()}
    if killed:  # after the earlier folder was moved away
        (tmp_path / "published").rename(tmp_path / ".published.earlier")
    rename = os.replace

    def fail(source, target) -> None:
        if str(source).endswith("published.part"):
            raise OSError(errno.EIO, "Input/output error", str(source))
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(WriteError, match="published cannot be written"):
        publish(str(tmp_path / "epoch_2.pth"), tmp_path / "published", None, Statements(licence="mit"))
    assert {path.name: sha256_of(path) for path in (tmp_path / "published").iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"epoch_2.pth", "published"}


@pytest.mark.slow
def test_a_full_disk_keeps_the_earlier_folder(shapes, tmp_path):
    publish_small("seg", shapes, tmp_path)
    before = {path.name: sha256_of(path) for path in (tmp_path / "published").iterdir()}
    with file_size_limit(100_000), pytest.raises(WriteError, match="published/model.safetensors cannot be written"):
        publish(str(tmp_path / "epoch_2.pth"), tmp_path / "published", None, Statements(licence="mit"))
    assert {path.name: sha256_of(path) for path in (tmp_path / "published").iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"epoch_2.pth", "published"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--private",), "--private: it needs --push OWNER/NAME"),
        (("--push", "me"), "--push me: give OWNER/NAME"),
        (("--example", "absent.jpg"), "--example absent.jpg does not exist"),
    ],
)
def test_wrong_arguments(arguments, message, tmp_path):
    done = invoke("publish.py", "absent.pth", "out", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and not list(tmp_path.iterdir())


def test_an_encoder_pretrained_by_mae_gets_all_scans():
    small = dict(arch=dict(embed_dims=32, num_layers=4), img_size=64, decoder_dim=32, decoder_depth=1, decoder_heads=2)
    for encoder, scans in (("ARM", 4), ("Vim", 2)):
        assert arguments_of(MAEPretrainer(**small, encoder=encoder).state_dict())["scans"] == scans
