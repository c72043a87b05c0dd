"""Options, configurations and environment variables: what is typed is what is used, or one line says why not."""

import argparse
import re
import socket
from pathlib import Path

import pytest

from arm_toolkit.engine.arguments import add_train_arguments
from arm_toolkit.engine.config import load_config
from tests.helpers.paths import ROOT
from tests.helpers.runs import CONFIGS, seg_config
from tests.helpers.tools import call_tool, run_tool

pytestmark = pytest.mark.xdist_group("options")


@pytest.fixture(scope="module")
def configs(shapes, tmp_path_factory) -> Path:
    """A folder with a configuration of each kind."""
    folder = tmp_path_factory.mktemp("configs")
    for kind, config in CONFIGS.items():
        config(shapes).dump(folder / f"{kind}.py")
    return folder


@pytest.fixture
def refused(configs, tmp_path, capsys, monkeypatch):
    """Runs a tool that must fail with status 2 and one line, and make nothing."""
    monkeypatch.chdir(tmp_path)

    def check(script: str, *arguments, says: list[str]) -> str:
        before = set(tmp_path.rglob("*"))
        capsys.readouterr()
        status = call_tool(script, *arguments)
        error = capsys.readouterr().err
        assert status == 2, error
        assert re.fullmatch(r"error: [^\n]+\n", error), error
        assert all(words in error for words in says), error
        assert set(tmp_path.rglob("*")) == before
        return error

    return check


ENVIRONMENT = {
    "scan back end": (dict(ARM_SCAN_BACKEND="foo"), [], ["ARM_SCAN_BACKEND='foo'", "give auto, reference"]),
    "scan back end of a GPU": (dict(ARM_SCAN_BACKEND="mamba_ssm"), [], ["ARM_SCAN_BACKEND='mamba_ssm'", "cannot run"]),
    "instruction set": (dict(ARM_CPU_ISA="foo"), [], ["ARM_CPU_ISA='foo'", "plain"]),
    "local rank": (dict(LOCAL_RANK="x"), [], ["LOCAL_RANK=x", "whole number"]),
    "negative local rank": (dict(LOCAL_RANK="-1"), [], ["LOCAL_RANK=-1", "whole number"]),
    "threads": (dict(OMP_NUM_THREADS="abc"), [], ["OMP_NUM_THREADS=abc", "number of threads"]),
    "no threads": (dict(OMP_NUM_THREADS="0"), [], ["OMP_NUM_THREADS=0", "from 1"]),
    "memory": (dict(ARM_KEEP_FREED_MEMORY="maybe"), [], ["ARM_KEEP_FREED_MEMORY=maybe", "0 or 1"]),
    "products": (dict(ARM_ONEDNN_PRODUCTS="yes"), [], ["ARM_ONEDNN_PRODUCTS=yes", "0 or 1"]),
    "no traceback": (dict(ARM_TRACEBACK="0", LOCAL_RANK="x"), [], ["LOCAL_RANK=x"]),
    "log level": ({}, ["--cfg-options", "log_level=LOUD"], ["log_level='LOUD'", "INFO"]),
    "arch": ({}, ["--cfg-options", "model.backbone.arch=[1,2]"], ["arch=[1, 2]", "embed_dims"]),
    "launcher alone": ({}, ["--launcher", "pytorch"], ["--launcher pytorch: ", "RANK is not set", "dist_train.sh"]),
    "rank beyond the world": (
        dict(RANK="2", LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="29511"),
        ["--launcher", "pytorch"],
        ["RANK=2", "0 to 1"],
    ),
    "port": (
        dict(RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="99999"),
        ["--launcher", "pytorch"],
        ["MASTER_PORT=99999", "65535"],
    ),
}


@pytest.mark.parametrize("what", ENVIRONMENT)
def test_environment_variables_are_checked_before_anything_is_made(what, configs, refused, monkeypatch):
    """row_45"""
    variables, arguments, says = ENVIRONMENT[what]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refused("train.py", configs / "seg.py", *arguments, says=says)


TOOLS = {
    "visualize": ("visualize_features.py", "a.pth", "images"),
    "reconstruct": ("reconstruct.py", "a.pth", "images"),
    "model_info": ("model_info.py", "arm_tiny_patch16_224"),
    "benchmark": ("benchmark.py", "block"),
    "knn": ("knn.py", ROOT / "cls_configs/arm_b_linear.py", "a.pth"),
    "robustness": ("robustness.py", "a.pth", "--model", "arm_tiny_patch16_224", "--data", "."),
}


@pytest.mark.parametrize("variable", ["ARM_SCAN_BACKEND", "ARM_CPU_ISA"])
@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_that_scans_checks_the_environment_first(tool, variable, refused, monkeypatch):
    """row_45"""
    monkeypatch.setenv(variable, "foo")
    refused(*TOOLS[tool], says=[f"{variable}='foo'"])


def test_an_empty_variable_counts_as_unset(shapes, tmp_path, monkeypatch):
    """row_45"""
    for name in ("ARM_SCAN_BACKEND", "ARM_CPU_ISA", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
    seg_config(shapes, **{"train_cfg.max_iters": 1}).dump(tmp_path / "mine.py")
    assert call_tool("train.py", tmp_path / "mine.py", "--work-dir", tmp_path / "work") == 0


def test_a_taken_port_of_a_process_is_one_line(configs, refused, monkeypatch):
    """row_45: a process that torchrun did not start."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        variables = dict(RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        refused("train.py", configs / "seg.py", "--launcher", "pytorch", says=[f"MASTER_PORT={port}", "free port"])


def test_check_makes_nothing(configs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call_tool("train.py", configs / "det.py", "--check") == 0
    assert "in order" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_several_processes_report_missing_data_once_as_the_last_line(tmp_path):
    """row_60"""
    config = ROOT / "det_configs/mask_rcnn_arm_b.py"
    result = run_tool("dist_train.sh", config, 8, cwd=tmp_path, timeout=60)
    assert result.returncode == 2 and not list(tmp_path.iterdir())
    assert result.stdout == ""
    assert re.fullmatch(r"error: train_dataloader[^\n]*data/coco does not exist[^\n]*\n", result.stderr)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "says"),
    [
        (dict(PORT="abc"), "PORT=abc: give a number from 1 to 65535"),
        (dict(PORT="99999"), "PORT=99999: give a number"),
        (dict(NNODES="two"), "NNODES=two: give a number from 1"),
        (dict(NNODES="2"), "NNODES=2 needs MASTER_ADDR"),
        (dict(NNODES="2", MASTER_ADDR="host0"), "NNODES=2 needs NODE_RANK"),
        (dict(NNODES="2", MASTER_ADDR="host0", NODE_RANK="2"), "NODE_RANK=2: give a number from 0 to 1"),
    ],
)
def test_variables_of_the_scripts(variables, says, tmp_path):
    """row_45"""
    result = run_tool("dist_train.sh", "a.py", 2, cwd=tmp_path, env=variables)
    assert result.returncode == 2
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr) and says in result.stderr


@pytest.mark.slow
def test_a_taken_port_of_the_script_is_one_line(tmp_path):
    """row_45"""
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run_tool("dist_train.sh", "a.py", 2, cwd=tmp_path, env=dict(PORT=port))
    assert result.returncode == 2
    assert re.fullmatch(rf"error: PORT={port} is taken[^\n]+\n", result.stderr)


# ------------------------------------------------------------------------------------------ what is typed is used


@pytest.fixture
def typed(configs, tmp_path, monkeypatch):
    """The configuration of a command line, as training would use it."""
    monkeypatch.chdir(tmp_path)

    def read(kind: str, *options: str):
        parser = argparse.ArgumentParser()
        add_train_arguments(parser)
        args = parser.parse_args(["--cfg-options", *options])
        return load_config(str(configs / f"{kind}.py"), args.cfg_options)

    return read


FOLDERS = (
    "my data/",
    "data,v2/",
    "007/",
    "[data]/",
    "(a)/",
    "None_/",
    "1e5/",
    "True/",
    "'quoted'/",
    " leading/",
    "a=b/",
)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_path_stays_what_was_typed(folder, typed, shapes):
    """row_26: the folder itself, and below it the paths of every data set."""
    cfg = typed("seg", f"data_root={folder}")
    assert cfg.data_root == folder
    assert cfg.train_dataloader.dataset.data_root == folder
    folder = folder.rstrip("/")
    cfg = typed("det", f"train_dataloader.dataset.ann_file={folder}", f"load_from={folder}", f"work_dir={folder}")
    assert cfg.train_dataloader.dataset.ann_file == cfg.load_from == cfg.work_dir == folder
    cfg = typed("det", f"train_dataloader.dataset.data_prefix.img={folder}")
    assert cfg.train_dataloader.dataset.data_prefix.img == folder
    cfg = typed("pretrain", f"train_dataloader.dataset.path={folder}", f"train_dataloader.dataset.prefix={folder}")
    assert cfg.train_dataloader.dataset.path == cfg.train_dataloader.dataset.prefix == folder


@pytest.mark.parametrize("folder", ["my data", "data,v2", "007"])
def test_a_training_reads_the_folder_that_was_typed(folder, shapes, tmp_path, monkeypatch):
    """row_26"""
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder).symlink_to(shapes / "ade")
    cfg = seg_config(shapes, **{"train_cfg.max_iters": 1})
    cfg.data_root = cfg.train_dataloader.dataset.data_root = "data/elsewhere/"
    cfg.dump("mine.py")
    check = [] if folder == "my data" else ["--check"]  # one of them trains
    options = ("--cfg-options", f"data_root={folder}")
    assert call_tool("train.py", "mine.py", "--work-dir", "work", *options, *check) == 0
    assert list(Path("work").glob("*.pth")) or check


VALUES = [
    ("seg", "train_cfg.max_iters=7", 7),
    ("seg", "optim_wrapper.optimizer.lr=1e-5", 1e-5),
    ("seg", "model.backbone.init_cfg=None", None),
    ("seg", "load_from=None", None),
    ("seg", "model.backbone.with_cp=full", "full"),
    ("seg", "model.backbone.with_cp=False", False),
    ("seg", "model.backbone.with_cp=true", True),
    ("det", "train_dataloader.dataset.metainfo.classes=traffic light,bus", ["traffic light", "bus"]),
    ("det", "train_dataloader.dataset.metainfo.classes=['traffic light', 'a,b']", ["traffic light", "a,b"]),
    ("det", "train_dataloader.dataset.metainfo.classes=(bus, red car)", ("bus", "red car")),
    ("det", "model.backbone.out_indices=0,1,2,3", [0, 1, 2, 3]),
    ("det", "model.backbone.out_indices=[0,1,2,3]", [0, 1, 2, 3]),
    ("det", "test_dataloader.dataset.pipeline.1.scale=(96,128)", (96, 128)),
    ("pretrain", "model.arch={'embed_dims': 32, 'num_layers': 2}", dict(embed_dims=32, num_layers=2)),
    ("pretrain", "model.arch=base", "base"),
    ("seg", "val_evaluator=None", None),
    ("seg", "randomness.seed=3", 3),
]


@pytest.mark.parametrize(("kind", "option", "value"), VALUES)
def test_other_values_are_read_as_python_reads_them(kind, option, value, typed):
    node = typed(kind, option)
    for part in option.partition("=")[0].split("."):
        node = node[int(part)] if isinstance(node, list) else node[part]
    assert node == value and type(node) is type(value) or isinstance(value, dict) and node == value


WRONG = {
    "no iterations": ("seg", "train_cfg.max_iters=0", "whole number of 1 or more"),
    "negative iterations": ("seg", "train_cfg.max_iters=-1", "whole number of 1 or more"),
    "half an iteration": ("seg", "train_cfg.max_iters=1.5", "whole number of 1 or more"),
    "no epochs": ("pretrain", "train_cfg.max_epochs=0", "whole number of 1 or more"),
    "epochs with a leading zero": ("pretrain", "train_cfg.max_epochs=007", "give a number"),
    "a rate as text": ("seg", "optim_wrapper.optimizer.lr=fast", "give a number"),
    "a rate that is NaN": ("seg", "optim_wrapper.optimizer.lr=nan", "give a number above 0"),
    "an infinite rate": ("seg", "optim_wrapper.optimizer.lr=inf", "give a number above 0"),
    "a negative rate": ("seg", "optim_wrapper.optimizer.lr=-0.1", "give a number above 0"),
    "a rate of 0": ("seg", "optim_wrapper.optimizer.lr=0", "give a number above 0"),
    "decay that is NaN": ("seg", "optim_wrapper.optimizer.weight_decay=nan", "0 or more"),
    "a list of rates": ("seg", "optim_wrapper.optimizer.lr=1,2", "give a number above 0"),
    "crop scale reversed": ("pretrain", "train_dataloader.dataset.scale=(1.0,0.2)", "smaller number first"),
    "crop scale of 0": ("pretrain", "train_dataloader.dataset.scale=(0,0.5)", "above 0"),
    "no checkpoint interval": ("seg", "default_hooks.checkpoint.interval=0", "-1 for never"),
    "checkpoint interval -2": ("seg", "default_hooks.checkpoint.interval=-2", "-1 for never"),
    "no logging interval": ("det", "default_hooks.logger.interval=0", "-1 for never"),
    "no batch": ("det", "train_dataloader.batch_size=0", "whole number of 1 or more"),
    "no batches": ("det", "train_dataloader.num_batch_per_epoch=0", "whole number of 1 or more"),
    "no accumulation": ("seg", "optim_wrapper.accumulative_counts=0", "whole number of 1 or more"),
    "a negative seed": ("seg", "randomness.seed=-1", "whole number of 0 or more"),
    "NaN in a loss": ("seg", "model.decode_head.loss_decode.loss_weight=nan", "NaN is not a number"),
    "classes as text": ("seg", "model.decode_head.num_classes=three", "give a number"),
    "a number for the model": ("seg", "model=5", "model has parts; set one"),
    "text for a data loader": ("seg", "train_dataloader=fast", "train_dataloader has parts"),
    "a list for a data loader": ("seg", "train_dataloader=[0, 0]", "must be a dict"),
    "a data loader without a data set": ("pretrain", "train_dataloader={}", "has no dataset"),
    "a list for a data set": ("seg", "train_dataloader.dataset=[0]", "must be a dict"),
    "text for metainfo": ("seg", "train_dataloader.dataset.metainfo=x", "must be a dict"),
    "numbers for the scope": ("det", "default_scope=[1,2]", "give a name"),
    "a scope that is no name": ("det", "default_scope=../..", "give a name"),
    "no type": ("pretrain", "train_dataloader.dataset.type=", "name of a registered class"),
    "a type that is no name": ("seg", "model.backbone.type=../..", "name of a registered class"),
    "a dict for True": ("seg", "train_dataloader.sampler.shuffle={'a':1}", "give True or False"),
    "text for True": ("seg", "train_dataloader.sampler.shuffle=x", "give True or False"),
    "half of True": ("seg", "train_dataloader.sampler.shuffle=0.5", "give True or False"),
    "an epoch without end": ("det", "train_dataloader.sampler.infinite=True", "never ends"),
    "an epoch of mmengine's endless sampler": ("det", "train_dataloader.sampler.type=InfiniteSampler", "never ends"),
    "text for a filter": ("det", "train_dataloader.dataset.filter_cfg=", "must be a dict"),
    "a number for modules": ("det", "custom_imports={'imports':0}", "give dict(imports=[MODULE, ...])"),
    "numbers for modules": ("det", "custom_imports=[1, 2]", "give dict(imports=[MODULE, ...])"),
    "a number for a pipeline": ("seg", "train_dataloader.dataset.pipeline=3", "pipeline has parts"),
    "an empty data root": ("seg", "data_root=", "give a folder"),
    "an empty part of a key": ("seg", "model..type=ARM", "has no key ''"),
    "the model taken away": ("seg", "model=None", "has no model"),
    "the schedule of iterations taken away": ("seg", "train_cfg=None", "has no train_cfg"),
}


@pytest.mark.parametrize("what", WRONG)
def test_values_that_cannot_be_right_name_their_key(what, refused, configs):
    """row_46"""
    kind, option, says = WRONG[what]
    refused("train.py", configs / f"{kind}.py", "--cfg-options", option, says=[option.partition("=")[0], says])


FILES = {
    "an empty file": ({"a.py": ""}, ["a.py has no key model"]),
    "a comment": ({"a.py": "# nothing\n"}, ["a.py has no key model"]),
    "sys.exit": ({"a.py": "import sys\nsys.exit()\n"}, ["a.py cannot be read", "sys.exit"]),
    "sys.exit with a status": ({"a.py": "import sys\nsys.exit(0)\n"}, ["a.py cannot be read", "sys.exit"]),
    "quit": ({"a.py": "raise SystemExit\n"}, ["a.py cannot be read", "sys.exit"]),
    "its own base": ({"a.py": "_base_ = 'a.py'\n"}, ["_base_", "circle: a.py -> a.py"]),
    "a circle of three": (
        {"a.py": "_base_ = ['b.py']\n", "b.py": "_base_ = './c.py'\n", "c.py": "_base_ = ['a.py']\n"},
        ["_base_", "circle: a.py -> b.py -> c.py -> a.py"],
    ),
    "a base that is not there": ({"a.py": "_base_ = 'gone.py'\n"}, ["a.py cannot be read", "gone.py"]),
    "a base of the wrong type": ({"a.py": "_base_ = [1]\n"}, ["a.py cannot be read"]),
    "Latin-1": ({"a.py": b"a = '\xe9'\n"}, ["a.py cannot be read", "utf-8"]),
    "a null byte": ({"a.py": b"a = 1\0\n"}, ["a.py cannot be read", "null"]),
    "a module that exits": (
        {"a.py": "custom_imports = dict(imports=['leaves'])\n", "leaves.py": "raise SystemExit\n"},
        ["a.py: custom_imports"],
    ),
    "a module that fails": (
        {"a.py": "custom_imports = dict(imports=['fails'])\n", "fails.py": "1 / 0\n"},
        ["a.py: custom_imports", "division by zero"],
    ),
    "imports without names": ({"a.py": "custom_imports = ['arm_backbone']\n"}, ["a.py: custom_imports=", "give dict"]),
    "a model that is text": ({"a.py": "model = 'ARM'\n"}, ["a.py has no key model"]),
    "only a model": ({"a.py": "model = dict(type='ARM')\n"}, ["has no train_dataloader", "_base_"]),
}


@pytest.mark.parametrize("what", FILES)
def test_configurations_that_cannot_be_run(what, refused, tmp_path, monkeypatch):
    """row_46"""
    contents, says = FILES[what]
    for name, text in contents.items():
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    refused("train.py", "a.py", says=says)
    refused("pretrain.py", "a.py", says=says)


def test_keys_that_nothing_reads_are_named(typed, configs, capsys):
    text = f"_base_ = [{str(configs / 'seg.py')!r}]\nmax_epochs = 3\nsize = 5\ntrain_cfg = dict(val_interval=size)\n"
    (configs / "mine.py").write_text(text)
    assert load_config(str(configs / "mine.py")).train_cfg.val_interval == 5
    said = capsys.readouterr()
    assert re.fullmatch(r"warning: [^\n]+mine\.py: nothing reads the key 'max_epochs'[^\n]+\n", said.out)


@pytest.mark.parametrize("arguments", [["--work-dir", ""], ["--cfg-options", "=5"], ["--cfg-options", "lr"]])
def test_empty_arguments(arguments, refused, configs):
    refused("train.py", configs / "seg.py", *arguments, says=[arguments[0]])


def test_empty_data(refused):
    refused("pretrain.py", "--model", "arm_tiny", "--data", "", says=["--data is empty"])


@pytest.mark.parametrize(
    ("kind", "option", "says"),
    [
        ("seg", "param_scheduler.0.type=()", "param_scheduler: type must be"),
        ("det", "model.rpn_head.anchor_generator.strides=4", "cannot be"),
        ("pretrain", "model.data_preprocessor.pad_size_divisor=[1]", "look for a wrong value"),
    ],
)
def test_wrong_values_that_only_the_run_finds_are_one_line(kind, option, says, configs, tmp_path, capsys):
    """row_46"""
    command = ("train.py", configs / f"{kind}.py", "--work-dir", tmp_path / "work", "--cfg-options", option)
    assert call_tool(*command) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", error) and says in error
