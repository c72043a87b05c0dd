"""Every command of the documentation exists; those that take seconds are run as written."""

import contextlib
import functools
import importlib.util
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from arm_backbone import ARMClassifier, VimClassifier, VMambaClassifier
from arm_backbone.checkpoint.convert import convert
from arm_pretrain import ARMPretrainer
from arm_toolkit.engine.config import load_config
from tests.helpers.documents import DOCUMENTS, blocks, commands, name
from tests.helpers.hub_server import Hub, serve, use
from tests.helpers.paths import ROOT
from tests.helpers.published import publish_small, save_checkpoint
from tests.helpers.runs import ARCH
from tests.helpers.small_models import VMAMBA_ARCH
from tests.helpers.tools import call_tool
from tests.helpers.untrained import write_models
from tests.helpers.work_dirs import make_run, predict_labels

# scripts that pass their options on to a tool
PASSED_ON = {f"{way}_{action}.sh": f"{action}.py" for way in ("dist", "slurm") for action in ("train", "test")}
COMMANDS = [(path, words) for path in DOCUMENTS for words in commands(path)]
TOOLS = [(path, words) for path, words in COMMANDS if any(word.startswith("tools/") for word in words)]


def label(value) -> str:
    return name(value) if isinstance(value, Path) else " ".join(value)[:60]


def script_of(words: list[str]) -> int:
    """Index of the script among the words of a command."""
    return next(i for i, word in enumerate(words) if word.startswith("tools/"))


@functools.cache
def help_text(script: str, *subcommands: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert call_tool(script, *subcommands, "--help") == 0
    return output.getvalue()


def known_options(script: str, arguments: list[str]) -> set[str]:
    """Options of a tool, or of the subcommand that the arguments choose."""
    path: list[str] = []
    for word in arguments:
        choices = re.search(r"^  \{([\w,-]+)\}", help_text(script, *path), re.M)
        if not choices or word not in choices[1].split(","):
            break
        path.append(word)
    return set(re.findall(r"--[\w-]+", help_text(script, *path)))


def test_there_are_commands():
    assert len(TOOLS) > 40


@pytest.mark.parametrize("path, words", TOOLS, ids=label)
def test_script_and_options_exist(path, words):
    index = script_of(words)
    file, arguments = ROOT / words[index], words[index + 1 :]
    assert file.is_file()
    used = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    script = PASSED_ON.get(file.name, file.name)
    if script.endswith(".py"):
        assert used <= known_options(script, arguments)
    else:
        assert all(option in file.read_text() for option in used)


@pytest.mark.parametrize("path, words", [(p, w) for p, w in TOOLS if any("_configs/" in x for x in w)], ids=label)
def test_configuration_and_its_options_exist(path, words):
    """Loading reports a key that the configuration does not have."""
    config = next(word for word in words if "_configs/" in word)
    given: list[str] = []
    if "--cfg-options" in words:
        for word in words[words.index("--cfg-options") + 1 :]:
            if "=" not in word or word.startswith("--"):
                break
            given.append(word)
    options = dict(word.split("=", 1) for word in given)
    load_config(str(ROOT / config), options)


@pytest.mark.parametrize("path, words", [c for c in COMMANDS if c[1][:2] == ["python", "-m"]], ids=label)
def test_module_exists(path, words):
    assert importlib.util.find_spec(words[2]) is not None


# ------------------------------------------------------------------------------------------- run as written


def run(command: str) -> None:
    """Run a command of the documentation in the current folder."""
    words = shlex.split(command)
    assert words in [found for _, found in COMMANDS], f"no document has: {command}"
    assert call_tool(Path(words[1]).name, *words[2:]) == 0


@pytest.fixture
def folder(tmp_path, monkeypatch, shapes) -> Path:
    """A folder in which the README's paths exist, with small models and generated images."""
    torch.manual_seed(0)
    for where in ("work_dirs/arm_b", "checkpoints", "data/ade"):
        (tmp_path / where).mkdir(parents=True)
    (tmp_path / "data/coco").symlink_to(shapes / "coco")
    (tmp_path / "data/ade/ADEChallengeData2016").symlink_to(shapes / "ade")
    (tmp_path / "IMAGES").symlink_to(shapes / "coco/val2017")
    cfg = Config.fromfile(ROOT / "pretrain/configs/arm_b.py")
    cfg.model.update(arch=ARCH, decoder_dim=64)
    pretrained = ARMPretrainer(ARCH, decoder_dim=64)
    checkpoint = dict(state_dict=pretrained.state_dict(), meta=dict(cfg=cfg.pretty_text))
    torch.save(checkpoint, tmp_path / "work_dirs/arm_b/epoch_1600.pth")
    classifier = ARMClassifier(ARCH, img_size=224, cls_token="middle")
    official = convert(classifier.state_dict(), "official-finetune")[0]
    torch.save(dict(model=official, model_ema=official), tmp_path / "checkpoint-99.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_checkpoints_are_converted(folder):
    run("python tools/convert_checkpoint.py checkpoint-99.pth checkpoints/arm_b_in1k.pth --to classifier --ema")
    source, target = "work_dirs/arm_b/epoch_1600.pth", "checkpoints/arm_b_pretrain.pth"
    run(f"python tools/convert_checkpoint.py {source} {target} --to backbone")
    run(f"python tools/convert_checkpoint.py {source} checkpoint-1599.pth --to official-pretrain")
    ours = torch.load(target, weights_only=True)["state_dict"]
    run(f"python tools/convert_checkpoint.py checkpoint-1599.pth {target} --to backbone")
    theirs = torch.load(target, weights_only=True)["state_dict"]
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_checkpoints_of_vim_are_converted(folder):
    torch.manual_seed(0)
    official = convert(VimClassifier(ARCH, img_size=64).state_dict(), "official-finetune")[0]
    torch.save(dict(model=official), "vim_s.pth")
    run("python tools/convert_checkpoint.py vim_s.pth checkpoints/vim_s_in1k.pth --to classifier")
    run("python tools/convert_checkpoint.py checkpoints/vim_s_in1k.pth vim_s_again.pth --to official-finetune")
    again = torch.load("vim_s_again.pth", weights_only=True)["model"]
    assert again.keys() == official.keys() and all(torch.equal(again[key], official[key]) for key in again)
    pretrained = ARMPretrainer(ARCH, decoder_dim=64, encoder="Vim")
    make_parent("work_dirs/vim_b_300e/epoch_300.pth")
    torch.save(dict(state_dict=pretrained.state_dict()), "work_dirs/vim_b_300e/epoch_300.pth")
    target = "checkpoints/vim_b_pretrain.pth"
    run(f"python tools/convert_checkpoint.py work_dirs/vim_b_300e/epoch_300.pth {target} --to backbone")
    assert len(torch.load(target, weights_only=True)["state_dict"]["blocks.0.mixer.D"]) == 2


def test_checkpoints_of_vmamba_are_converted(folder):
    torch.manual_seed(0)
    official = convert(VMambaClassifier(VMAMBA_ARCH).state_dict(), "official-finetune")[0]
    torch.save(dict(model=official), "vmamba_b.pth")
    run("python tools/convert_checkpoint.py vmamba_b.pth checkpoints/vmamba_b_in1k.pth --to classifier")
    run("python tools/convert_checkpoint.py checkpoints/vmamba_b_in1k.pth vmamba_b_again.pth --to official-finetune")
    again = torch.load("vmamba_b_again.pth", weights_only=True)["model"]
    assert again.keys() == official.keys() and all(torch.equal(again[key], official[key]) for key in again)


def test_data_sets_are_checked(folder):
    run("python tools/prepare_data.py check coco data/coco")
    run("python tools/prepare_data.py check ade data/ade/ADEChallengeData2016 --num-classes 150")


def test_a_configuration_is_made_from_a_folder(folder):
    Path("DATA").symlink_to("data/coco")
    run("python tools/new_config.py DATA --out mine.py")
    assert call_tool("train.py", "mine.py", "--check") == 0


def test_models_are_inspected(folder):
    run("python tools/reconstruct.py work_dirs/arm_b/epoch_1600.pth IMAGES --given 3")
    run("python tools/visualize_features.py work_dirs/arm_b/epoch_1600.pth IMAGES")
    assert Path("reconstruction.png").stat().st_size > 10_000
    assert Path("work_dirs/features/features.png").stat().st_size > 10_000


def test_pages_are_written(folder, shapes):
    for work_dir in ("camvid", "camvid_scratch"):
        predict_labels(make_run(folder / "work_dirs" / work_dir, "seg", shapes), shapes)
    run("python tools/report.py work_dirs/camvid")
    run("python tools/report.py work_dirs/camvid work_dirs/camvid_scratch --out comparison.html")
    assert Path("work_dirs/camvid/report.html").stat().st_size > 100_000
    assert "Settings that differ" in Path("comparison.html").read_text()


@pytest.mark.slow
def test_models_are_published_and_named_on_the_hub(folder, shapes, monkeypatch):
    """`tools/predict.py` is run as written, too; the hub is a server on this machine."""
    Path("work_dirs/mine").mkdir()
    save_checkpoint("det", shapes, Path("work_dirs/mine/iter_400.pth"))
    Path("IMAGE.jpg").write_bytes(next(Path("IMAGES").iterdir()).read_bytes())
    hub = Hub(files={"OWNER/NAME": {"checkpoint-1599.pth": Path("work_dirs/arm_b/epoch_1600.pth").read_bytes()}})
    with serve(hub):
        use(monkeypatch, folder / "cache", hub.url)
        publishing = "python tools/publish.py work_dirs/mine/iter_400.pth published/mine"
        run(f"{publishing} --license cc-by-4.0 --dataset my-images --example IMAGE.jpg")
        run("python tools/predict.py published/mine IMAGES --out predictions")
        run(f"{publishing} --push OWNER/NAME --private")
        run("python tools/predict.py hf://OWNER/NAME IMAGES --out predictions")
        source, target = "hf://OWNER/NAME/checkpoint-1599.pth", "checkpoints/arm_b_pretrain.pth"
        run(f"python tools/convert_checkpoint.py {source} {target} --to backbone")
        run("python tools/publish.py work_dirs/arm_b/epoch_1600.pth published/encoder")
    assert len(list(Path("predictions").rglob("*.jpg"))) == 6 and Path(target).is_file()


@pytest.fixture
def models(folder, shapes) -> Path:
    """The folder with models that documents name, and an image."""
    made = write_models(shapes, folder)
    for path, task in (("mine/iter_400.pth", "seg"), ("shapes/epoch_2.pth", "det")):
        (folder / "work_dirs" / path).parent.mkdir(exist_ok=True)
        made[task].rename(folder / "work_dirs" / path)
    shutil.copy(min((shapes / "coco/val2017").iterdir()), folder / "image.jpg")
    return folder


def test_images_are_predicted(models):
    run("python tools/predict.py work_dirs/mine/iter_400.pth IMAGES --out predicted")
    assert len(list(Path("predicted/labels").iterdir())) == len(list(Path("predicted/drawn").iterdir())) == 6
    annotations = "data/coco/annotations/instances_val2017.json"
    run(
        "python tools/predict.py work_dirs/shapes/epoch_2.pth data/coco/val2017 --out predicted "
        f"--annotations {annotations}"
    )
    images = {image["id"] for image in json.loads(Path(annotations).read_text())["images"]}
    assert {entry["image_id"] for entry in json.loads(Path("predicted/results.json").read_text())} <= images


def test_parameters_are_counted(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    run("python tools/model_info.py det_configs/mask_rcnn_arm_b.py")
    assert "total" in capsys.readouterr().out


def make_parent(path: str) -> Path:
    Path(path).parent.mkdir(exist_ok=True)
    return Path(path)


# those of export.md read an exported file: tests/arm_toolkit/inference/test_export.py runs them
PYTHON = [(path, code) for path in DOCUMENTS if path.name != "export.md" for code in blocks(path, "python")]


@pytest.mark.parametrize("path, code", PYTHON, ids=[f"{name(path)}-{i}" for i, (path, _) in enumerate(PYTHON)])
def test_python_runs(path, code, tmp_path, monkeypatch, shapes, request):
    """The examples run with the smallest model instead of ARM-B, to save time."""
    code = code.replace("arm_base", "arm_tiny").replace('arch="base"', 'arch="tiny"')
    if "transformers" in code:
        pytest.importorskip("transformers", reason="transformers is not installed (this project does not need it)")
    monkeypatch.chdir(tmp_path)
    for kind, folder in (("seg", "published/mine"), ("det", "published/shapes"), ("backbone", "published/encoder")):
        if folder in code:
            publish_small(kind, shapes, Path("work", kind)).folder.rename(make_parent(folder))
    if "checkpoints/arm_b_in1k.pth" in code:
        Path("checkpoints").mkdir()
        model = ARMClassifier("tiny", img_size=224, cls_token="middle")
        torch.save(dict(state_dict=model.state_dict()), "checkpoints/arm_b_in1k.pth")
    if "arm_toolkit.inference" in code:
        request.getfixturevalue("models")
    variables: dict = {}
    exec(code, variables)
    if "maps" in variables:
        hierarchical = [(1, 96 << i, 120 >> i, 160 >> i) for i in range(4)]
        expected = hierarchical if "VMamba" in code else [(1, 192, 30, 40)] * 4
        assert [tuple(level.shape) for level in variables["maps"]] == expected
