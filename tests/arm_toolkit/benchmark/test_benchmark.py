"""tools/benchmark.py: its timing, the equal work of all candidates, and the table of every subcommand."""

import functools
import json
import math
import re
from pathlib import Path

import pytest
import torch
from mmengine.dataset import Compose
from mmengine.registry import DATASETS
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

from arm_backbone.block import Block
from arm_backbone.ops import cross_scan, selective_scan
from arm_backbone.vim import VimBlock
from arm_toolkit.benchmark import other_kernels, scan_cases, timing
from arm_toolkit.benchmark.alternatives import (
    chunked_scan,
    conv_silu,
    four_calls,
    one_call,
    parallel_scan,
    selective_scan_loop,
    unbind_scan,
    usual_mixer,
)
from arm_toolkit.benchmark.block_cases import matrix_products, products_run
from arm_toolkit.benchmark.case import Candidate, Case, Grid, Setting
from arm_toolkit.benchmark.conditions import busy_warning
from arm_toolkit.benchmark.results import exponents
from arm_toolkit.benchmark.scan_cases import scan_inputs, scan_run, tokens_last
from arm_toolkit.benchmark.timing import FEWEST, SHORTEST
from arm_toolkit.datasets.transforms import LoadImage
from tests.helpers.paths import ROOT
from tests.helpers.runs import det_config, pretrain_config, seg_config
from tests.helpers.tools import call_tool

CPU = torch.device("cpu")
SHORT = ("--repeats", 1, "--seconds", 0)


class Clock:
    """A clock that only runs advance."""

    def __init__(self) -> None:
        self.now, self.order = 0.0, []

    def run(self, name: str, *durations: float):
        """A run whose calls take these times in turn; further calls take the last one."""
        left = list(durations)

        def work() -> None:
            self.order.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return work

    def __call__(self) -> float:
        return self.now


def test_each_candidate_has_its_turn_in_every_round():
    clock = Clock()
    runs = dict(a=clock.run("a", 9, 1, 2, 3), b=clock.run("b", 9, 4))
    times = timing.interleave(runs, seconds=100, repeats=3, clock=clock)
    assert times == dict(a=[1, 2, 3], b=[4, 4, 4])
    assert clock.order == ["a", "b"] * 4  # the first call of each is not counted


@pytest.mark.parametrize(
    ("seconds", "repeats", "rounds"), [(0, 100, FEWEST), (0, 1, 1), (35, 100, 4), (1e9, 7, 7), (30, 100, 3)]
)
def test_rounds_end_with_the_time_or_the_repetitions(seconds, repeats, rounds):
    clock = Clock()
    times = timing.interleave(dict(a=clock.run("a", 4), b=clock.run("b", 6)), seconds, repeats, clock)
    assert {len(measured) for measured in times.values()} == {rounds}


def test_a_quick_run_is_called_several_times_in_a_row():
    clock = Clock()
    runs = dict(quick=clock.run("quick", SHORTEST / 3.5), slow=clock.run("slow", 1))
    times = timing.interleave(runs, seconds=0, repeats=2, clock=clock)
    assert times == dict(quick=pytest.approx([SHORTEST / 3.5] * 2), slow=[1, 1])
    assert clock.order[2:] == (["quick"] * 4 + ["slow"]) * 2


def test_rows_hold_medians_rates_and_ratios_for_the_same_work(monkeypatch):
    times = dict(ours=[1.0, 2.0, 9.0], other=[8.0, 6.0, 7.0])
    monkeypatch.setattr(timing, "interleave", lambda *_: times)
    candidates = [Candidate("ours", lambda: torch.empty(100), 4), Candidate("other", lambda: torch.empty(50), 7)]
    case = Case("forward", 8, "tokens", "", candidates, unit="Gexp/s", tensor=("x", 100))
    ours, other = timing.measure(case, CPU, 1, 1)
    assert (ours["seconds"], ours["quartiles"], ours["repetitions"]) == (2, [1.5, 5.5], 3)
    assert (ours["ratio"], other["ratio"], other["baseline"]) == (1, 2, "ours")  # 1 s per unit of work against 1/2 s
    assert (ours["per_second"], other["per_second"]) == (2, 1)
    assert (ours["peak_bytes"], ours["tensors"], other["tensors"]) == (400, 4, 2)


def test_peak_memory_is_what_is_held_at_once():
    there = torch.ones(1000)

    def run() -> torch.Tensor:
        first = there + 1
        second = first + 1
        del first
        return torch.cat([second, second]) + 1  # second, cat and sum: 1000 + 2000 + 2000 numbers

    assert timing.peak_memory(run, CPU) == pytest.approx(4 * 5000, abs=64)  # a few bytes for scalars
    assert timing.peak_memory(lambda: there.add_(1), CPU) == pytest.approx(0, abs=64)


def test_what_does_not_fit_into_memory_becomes_a_note():
    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    case = Case("forward", 8, "tokens", "", [Candidate("large", fail), Candidate("small", lambda: None)])
    (row,) = timing.measure(case, CPU, 0, 1)
    assert row["candidate"] == row["baseline"] == "small" and case.notes == ["large: out of memory"]


def test_exponent_of_a_curve():
    def row(size: int, seconds: float, scales: bool = True) -> dict:
        return dict(kind="forward", candidate="a" if scales else "exp", size=size, seconds=seconds, scales=scales)

    rows = [row(size, 3e-6 * size**1.5) for size in (1024, 2048, 16384)]
    assert exponents(rows + [row(s, 1, False) for s in (1, 2, 3)]) == {("forward", "a"): pytest.approx(1.5)}
    assert exponents(rows[:2]) == {}  # two points fit anything


def test_a_busy_machine_is_reported():
    idle = dict(load=0.3, threads=2, cores=2)
    assert busy_warning(idle) is None and busy_warning(idle | dict(load=1.9, threads=1)) is not None


@pytest.fixture(scope="module", params=[1, 4])
def scan(request) -> dict[str, torch.Tensor]:
    """Inputs for two images of 3 x 5 tokens and a class token, with one direction or four."""
    inputs = scan_inputs(Setting(CPU, batch=2), Grid(3, 5, True), request.param, 6)
    return inputs | dict(delta=inputs["delta"] + 3, D=torch.randn_like(inputs["D"]))


def sequential_pscan(decay: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    states = [x[:, 0]]
    for t in range(1, x.shape[1]):
        states.append(decay[:, t] * states[-1] + x[:, t])
    return torch.stack(states, 1)


def mambapy_pscan(decay: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return pytest.importorskip("mambapy.pscan").pscan(decay, x)


@pytest.mark.parametrize(
    "function",
    [
        unbind_scan,
        functools.partial(parallel_scan, pscan=sequential_pscan),
        functools.partial(parallel_scan, pscan=mambapy_pscan),
    ],
    ids=["unbind", "prefix", "mambapy"],
)
def test_alternatives_scan_as_the_reference(scan, function):
    assert_same_scan(function, scan)


def test_chunks_scan_as_the_reference(scan):
    assert_same_scan(functools.partial(chunked_scan, chunk=5), scan | dict(delta=scan["delta"] - 3))  # no overflow


def assert_same_scan(function, scan):
    reference = functools.partial(cross_scan, backend="reference")
    torch.testing.assert_close(function(**scan), reference(**scan))
    grads = []
    for candidate in (function, reference):
        torch.manual_seed(0)  # the same incoming gradient
        grads.append(scan_run(candidate, scan, backward=True)())
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", scan_cases.FORWARD_ONLY)
def test_kernels_of_other_packages_scan_as_the_reference(scan, name):
    reason = other_kernels.missing(name)
    if reason:
        pytest.skip(reason)
    for _ in range(2):  # the second call reuses the first one's memory
        y = scan_cases.FORWARD_ONLY[name](**scan)
        torch.testing.assert_close(y, cross_scan(**scan, backend="reference"))


def test_different_work_is_not_timed(monkeypatch):
    wrong = lambda **inputs: cross_scan(**inputs, backend="torch") + 1  # noqa: E731
    monkeypatch.setattr(scan_cases, "unbind_scan", wrong)
    options = dict(scans=2, channels=8, backward=True, only=["torch", "unbind", "chunked"])
    cases = list(scan_cases.scan_cases(Setting(CPU), [Grid(3, 4)], **options))
    assert [[candidate.name for candidate in case.candidates] for case in cases] == [["torch", "chunked"]] * 2
    assert re.match(r"unbind: its result differs by \d\.\de[+-]\d+ of the largest value; not timed", cases[0].notes[0])


@pytest.mark.parametrize("single", [selective_scan, selective_scan_loop])
def test_four_calls_scan_as_the_reference(scan, single):
    calls = functools.partial(four_calls, selective_scan_fn=single)
    y = calls(**tokens_last(scan))
    torch.testing.assert_close(y.transpose(1, 2), cross_scan(**scan, backend="reference"))


def test_one_call_scans_as_the_reference(scan):
    y = one_call(**tokens_last(scan), selective_scan_fn=selective_scan)
    torch.testing.assert_close(y.transpose(1, 2), cross_scan(**scan, backend="reference"))


def test_the_usual_arrangement_is_the_same_mixer():
    mixer = Block(32, 4, 0.0, 1).mixer
    x, orders = torch.randn(2, 16, 32), Grid(3, 5, True).orders(4, CPU)
    kernels = dict(selective_scan_fn=selective_scan, conv_fn=conv_silu)
    torch.testing.assert_close(usual_mixer(mixer, x, orders, **kernels), mixer(x, orders))


@pytest.mark.parametrize(("kind", "scans", "number"), [(Block, 4, 7), (VimBlock, 2, 4)])
def test_the_bare_products_are_all_of_the_blocks(kind, scans, number):
    """The products have all FLOPs of the block except those of the scan and the convolution."""
    setting, grid = Setting(CPU, batch=2), Grid(3, 5, True)
    block = kind(32, scans, 0.0, 1)
    products = matrix_products(block, setting, grid.tokens)
    x = torch.randn(2, 16, 32, requires_grad=True)
    runs = {
        "alone": products_run(products, setting, backward=True),
        "block": lambda: block(x, grid.orders(scans, CPU)).sum().backward(),
    }
    flops = {}
    for name, run in runs.items():
        with FlopCounterMode(display=False) as counter:
            run()
        counts = counter.get_flop_counts()["Global"]
        flops[name] = sum(count for operator, count in counts.items() if "arm" not in str(operator))
    assert flops["alone"] == flops["block"] == 3 * sum(2 * x.numel() * w.shape[-1] for x, w in products)
    assert len(products) == number


def test_scans_that_would_take_too_much_are_skipped(monkeypatch):
    monkeypatch.setattr(scan_cases, "total_memory", lambda device: 10**6)
    options = dict(scans=1, channels=16, backward=True, only=["cpu", "torch", "reference", "unbind"])
    small, small_both = scan_cases.scan_cases(Setting(CPU), [Grid(4, 4)], **options)
    large, large_both = scan_cases.scan_cases(Setting(CPU), [Grid(16, 17)], **options)
    names = [[candidate.name for candidate in case.candidates] for case in (small, small_both, large, large_both)]
    assert set(names[0]) == set(names[1]) >= {"torch", "reference", "unbind"}
    assert set(names[0]) - set(names[2]) == {"unbind"} and set(names[0]) - set(names[3]) == {"unbind", "reference"}
    assert any("quadratic" in note for note in large_both.notes) and any("memory" in note for note in large.notes)


def rows_of(file: Path) -> list[dict]:
    """The rows of a result file, after the checks that every subcommand must pass."""
    result = json.loads(file.read_text())
    assert {"cpu", "cores", "threads", "instruction_set", "torch", "date", "load"} <= set(result["machine"])
    for row in result["rows"]:
        low, high = row["quartiles"]
        assert 0 < low <= row["seconds"] <= high and row["repetitions"] == 1
        assert row["ratio"] > 0 and math.isfinite(row["ratio"])
        assert row["candidate"] != row["baseline"] or row["ratio"] == 1
        assert "peak_bytes" not in row or row["peak_bytes"] >= 0
    return result["rows"]


def is_png(file: Path) -> bool:
    return file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def names(rows: list[dict], kind: str) -> list[str]:
    return [row["candidate"] for row in rows if row["kind"] == kind]


def test_scan(tmp_path, capsys):
    grids = ("--grid", "4x4", "4x6", "6x8+1")
    files = ("--json", tmp_path / "scan.json", "--plot", tmp_path / "scan.png")
    options = ("--channels", 8, "--backward", "--threads", torch.get_num_threads())
    assert call_tool("benchmark.py", "scan", *grids, *options, *files, *SHORT) == 0
    out = capsys.readouterr().out
    rows = rows_of(tmp_path / "scan.json")
    assert {"reference", "torch", "tokens last", "loop", "unbind", "chunked", "onnxruntime", "torch.exp"} <= set(
        names(rows, "forward")
    )
    assert {row["size"] for row in rows} == {16, 24, 49}
    forward = next(row for row in rows if row["candidate"] == "torch" and row["size"] == 16)
    exponentials = 4 * 16 * 8 * 16  # scans x tokens x channels x states
    assert forward["per_second"] == pytest.approx(exponentials / forward["seconds"] / 1e9)
    assert forward["tensors"] == forward["peak_bytes"] / (4 * 16 * 8)
    assert is_png(tmp_path / "scan.png")
    growth = out.split("Time grows as a power of the tokens")[1]
    assert re.search(r"^\| forward and backward, torch +\| +-?\d", growth, re.M) and "torch.exp" not in growth
    assert re.search(r"^cpu: .+", out, re.M) and "6 x 8 + 1 = 49 tokens" in out


@pytest.mark.parametrize(("encoder", "dtype"), [("ARM", "float32"), ("ARM", "bfloat16"), ("Vim", "float32")])
def test_block(tmp_path, encoder, dtype):
    file = tmp_path / "block.json"
    options = ("--encoder", encoder, "--arch", "tiny", "--grid", "2x3+1", "--backward", "--dtype", dtype)
    options += ("--backends", "auto", "torch")
    assert call_tool("benchmark.py", "block", *options, "--json", file, *SHORT) == 0
    rows = rows_of(file)
    for kind in ("forward", "forward and backward"):
        assert names(rows, kind)[0] == "GEMMs" and {"block, torch", "scan alone, torch"} < set(names(rows, kind))
        assert ("GEMMs, weights cast" in names(rows, kind)) == (dtype == "bfloat16")
    assert ("block, torch, weights held" in names(rows, "forward")) == (dtype == "bfloat16")
    assert {row["baseline"] for row in rows} == {"GEMMs"}


def test_model(tmp_path, capsys):
    files = ("--json", tmp_path / "model.json", "--plot", tmp_path / "model.png")
    models = ("arm_tiny_patch16_224", "deit_tiny_patch16_224")
    assert call_tool("benchmark.py", "model", *models, "--img-size", 32, "32x64", "--batch", 2, *files, *SHORT) == 0
    rows = rows_of(tmp_path / "model.json")
    assert names(rows, "inference") == names(rows, "training step") == [*models] * 2
    assert {row["size"] for row in rows} == {32 * 32, 32 * 64}
    assert all(row["per_second"] == pytest.approx(2 / row["seconds"]) for row in rows)
    # a training step holds a gradient for every weight
    assert min(row["peak_bytes"] for row in rows if row["kind"] == "training step") > 4 * 5e6
    assert is_png(tmp_path / "model.png")
    ours, deit = rows[0], rows[1]
    assert ours["forward_flops"] > 0 and deit["forward_flops"] > 0 and deit["scan_steps"] == 0
    assert ours["scan_steps"] == 12 * 4 * (2 * 2 + 1) * 192 * 16  # blocks x scans x tokens x channels x states
    assert ours["backward_flops"] == 0 < rows[2]["backward_flops"]
    assert re.search(r"forward GFLOP +\| +scan steps \(M\)", capsys.readouterr().out)


def test_weights_held_in_bfloat16(tmp_path):
    models, file = ("vim_tiny_patch16_224", "deit_tiny_patch16_224"), tmp_path / "model.json"
    options = ("--img-size", 32, "--dtype", "bfloat16", "--json", file)
    assert call_tool("benchmark.py", "model", *models, *options, *SHORT) == 0
    rows = rows_of(file)
    assert names(rows, "inference") == [*models, *(f"{name}, weights held" for name in models)]
    assert names(rows, "training step") == [*models]


@pytest.mark.slow
def test_compiled_blocks(tmp_path):
    model, file = "deit_tiny_patch16_224", tmp_path / "model.json"
    options = ("--img-size", 32, "--compile", "reduce-overhead", "--json", file)
    assert call_tool("benchmark.py", "model", model, *options, *SHORT) == 0
    rows = rows_of(file)
    assert names(rows, "inference") == names(rows, "training step") == [model, f"{model}, compiled"]


PARADIGMS = {
    "ar": "dict(type='ARMPretrainer', arch=ARCH, img_size=64, cluster_side=2, decoder_dim=64, decoder_depth=1)",
    "mae": "dict(type='MAEPretrainer', arch=ARCH, img_size=32, decoder_dim=64, decoder_depth=1, decoder_heads=2)",
    "moco": "dict(type='MoCoPretrainer', encoder='Vim', arch=ARCH, img_size=32, hidden_dim=64)",
    "labels": "dict(type='VimClassifier', arch=ARCH, img_size=32, num_classes=10)",
}


@pytest.fixture
def paradigms(tmp_path) -> list[Path]:
    """A small configuration of each paradigm."""
    imports = "custom_imports = dict(imports=['arm_backbone', 'arm_pretrain'])"
    for name, model in PARADIGMS.items():
        model = model.replace("ARCH", "dict(embed_dims=32, num_layers=2)")
        (tmp_path / f"{name}.py").write_text(f"{imports}\nmodel = {model}\n")
    return [tmp_path / f"{name}.py" for name in PARADIGMS]


def test_paradigms_are_raced_per_image(paradigms, tmp_path, capsys):
    file = tmp_path / "race.json"
    options = ("--batch", 2, "--data", tmp_path, "--json", file)
    assert call_tool("benchmark.py", "pretrain", *paradigms, *options, *SHORT) == 0
    rows = rows_of(file)
    assert f"Not run: data loader of {paradigms[3]}: its data set is not a folder" in capsys.readouterr().out
    sizes = (64, 32, 32, 32)
    found = [f"{config}, {size} x {size} pixels" for config, size in zip(paradigms, sizes, strict=True)]
    assert names(rows, "training step") == found
    assert all(row["per_second"] == pytest.approx(2 / row["seconds"]) for row in rows)
    moco, labels = rows[2:]
    assert moco["scan_steps"] == 4 * labels["scan_steps"]  # two views through two encoders
    assert moco["forward_flops"] > 4 * labels["forward_flops"]
    assert moco["backward_flops"] < 3 * labels["backward_flops"]  # no gradients of the momentum encoder


def test_pretrain_and_its_data_loader(shapes, tmp_path):
    config, file = tmp_path / "pretrain.py", tmp_path / "pretrain.json"
    pretrain_config(shapes).dump(config)
    options = ("--data", shapes / "coco/train2017", "--batch", 4, "--backends", "torch", "reference")
    assert call_tool("benchmark.py", "pretrain", config, *options, "--json", file, *SHORT) == 0
    rows = rows_of(file)
    assert names(rows, "training step") == ["torch", "reference"] and names(rows, "data loading") == ["data loader"]
    assert rows[-1]["per_second"] == pytest.approx(4 / rows[-1]["seconds"])


@DATASETS.register_module()
class PipelineImages(Dataset):
    """A data set of a user's own, which loads through a pipeline."""

    loaded_with = None

    def __init__(self, path: str, pipeline: list) -> None:
        self.files, self.pipeline = sorted(Path(path).iterdir()), Compose(pipeline)
        PipelineImages.loaded_with = type(self.pipeline.transforms[0])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict:
        image = self.pipeline(dict(img_path=str(self.files[index])))["img"]
        return dict(inputs=torch.from_numpy(image), data_samples=str(self.files[index]))


def test_data_loader_of_a_pipeline_reads_as_the_training_does(shapes, tmp_path):
    config, folder = tmp_path / "pretrain.py", shapes / "coco/train2017"
    cfg = pretrain_config(shapes)
    pipeline = [dict(type="LoadImageFromFile"), dict(type="Resize", scale=(96, 96))]
    cfg.train_dataloader.dataset = dict(type="PipelineImages", path=str(folder), pipeline=pipeline)
    cfg.dump(config)
    options = ("--data", folder, "--batch", 4, "--backends", "torch")
    assert call_tool("benchmark.py", "pretrain", config, *options, *SHORT) == 0
    assert PipelineImages.loaded_with is LoadImage


@pytest.mark.parametrize(
    ("make", "test", "batch"),
    [(det_config, False, 2), (det_config, True, 2), (seg_config, False, 2), (seg_config, False, 1)],
)
def test_profile(shapes, tmp_path, capsys, make, test, batch):
    config, file = tmp_path / "dense.py", tmp_path / "profile.json"
    make(shapes).dump(config)
    options = ("--steps", 2, "--batch", batch, "--json", file, *(["--test"] if test else []))
    assert call_tool("benchmark.py", "profile", config, *options) == 0
    rows = {row["part"]: row for row in json.loads(file.read_text())["rows"]}
    loading = rows.pop("loading, in a data worker")
    assert loading["seconds"] > 0 and sum(row["share"] for row in rows.values()) == pytest.approx(1)
    assert min(row["seconds"] for row in rows.values()) >= 0
    expected = {"matrix products", "convolutions", "scan, convolution and gates of the blocks", "rest"}
    assert expected <= set(rows) and ("optimizer" in rows) is not test
    assert ("RoIAlign and NMS" in rows) is (make is det_config)
    assert re.search(
        rf"(test|training) step of .*, batch {batch}, the first image .* images/s", capsys.readouterr().out
    )


def test_profile_needs_a_batch_more_than_its_steps(shapes, tmp_path, capsys):
    config = tmp_path / "dense.py"
    det_config(shapes).dump(config)
    assert call_tool("benchmark.py", "profile", config, "--steps", 10**6) == 2
    assert "batches, but --steps 1000000 needs 1000001" in capsys.readouterr().err


@pytest.mark.parametrize("make", [det_config, seg_config])
def test_dense(shapes, tmp_path, make):
    config, file, drawn = tmp_path / "dense.py", tmp_path / "dense.json", tmp_path / "dense.png"
    make(shapes).dump(config)
    options = ("--img-size", "64x96", "--json", file, "--plot", drawn)
    assert call_tool("benchmark.py", "dense", config, *options, *SHORT) == 0
    rows = rows_of(file)
    assert [row["kind"] for row in rows] == ["inference", "training step"] and is_png(drawn)
    assert {row["size"] for row in rows} == {64 * 96}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model", "arm_bas_patch16_224"], "did you mean arm_base_patch16_224"),
        (["model", "arm_tiny_patch16_224", "--img-size", 8], "cannot be built for images of 8 x 8 pixels"),
        (
            ["model", "arm_tiny_patch16_224", "--compile", "fast"],
            "compile='fast': torch.compile refuses it (Unrecognized mode=fast",
        ),
        (["pretrain", "det_configs/mask_rcnn_arm_b.py"], "is not a pretraining configuration"),
        (["pretrain", "nothing.py"], "does not exist"),
        (["pretrain", "pretrain/configs/moco/moco_arm_ti.py"], "--batch 1: a batch of one image"),
        (["dense", "pretrain/configs/arm_b.py"], "has no backbone and neck"),
        (["block", "--backends", "mamba_ssm", "--device", "cpu"], "mamba_ssm"),
        (["scan", "--json", "README.md/scan.json"], "README.md is not a folder"),
        (["scan", "--grid", "14"], "'14': give HxW"),
        (["scan", "--batch", "0"], "'0': give a positive number"),
        (["dense", "det_configs/mask_rcnn_arm_b.py", "--img-size", "8x"], "'8x': give pixels"),
    ],
)
def test_what_cannot_be_timed_is_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert call_tool("benchmark.py", *arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_loader_without_a_full_batch(shapes, tmp_path, capsys):
    config = tmp_path / "pretrain.py"
    pretrain_config(shapes).dump(config)
    options = ("--data", shapes / "coco/train2017", "--batch", 17, *SHORT)
    assert call_tool("benchmark.py", "pretrain", config, *options) == 2
    assert "its 16 images do not fill a batch of 17" in capsys.readouterr().err
