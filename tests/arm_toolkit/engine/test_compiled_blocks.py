"""The key `compile`: the same losses, weights under the same names, validation uncompiled, and what is refused."""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS
from torch._dynamo.utils import counters

from arm_toolkit.engine.compiled_blocks import SIZES, compile_arguments, compile_blocks, records_graphs
from arm_toolkit.errors import ConfigError
from tests.helpers.runs import CONFIGS, det_config, logged, pretrain_config, seg_config, train
from tests.helpers.small_models import VMAMBA_ARCH

EAGER = dict(backend="aot_eager")  # traces forward and backward; generates no code, which takes minutes


@pytest.fixture(autouse=True)
def no_variants_of_other_tests():
    torch.compiler.reset()
    counters.clear()


@HOOKS.register_module()
class WatchBlocks(Hook):
    """Records for each iteration whether the first block is compiled."""

    seen: list[tuple[str, bool]] = []

    def _note(self, runner, kind: str) -> None:
        self.seen.append((kind, runner.model.backbone.blocks[0]._compiled_call_impl is not None))

    def before_train_iter(self, runner, **_) -> None:
        self._note(runner, "training")

    def before_val_iter(self, runner, **_) -> None:
        self._note(runner, "validation")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["pretrain", "det"])
def test_losses_are_those_without_it(task, shapes, tmp_path):
    expected = train(CONFIGS[task](shapes), tmp_path / "plain")
    found = train(CONFIGS[task](shapes, compile=EAGER), tmp_path / "compiled")
    assert counters["frames"]["total"] == counters["frames"]["ok"] > 0
    losses = [[line["loss"] for line in logged(tmp_path / run).values()] for run in ("compiled", "plain")]
    assert losses[0][:4] == pytest.approx(losses[1][:4], rel=1e-3)
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)  # rounding grows from step to step
    assert list(found.model.state_dict()) == list(expected.model.state_dict())


def test_validation_is_not_compiled(shapes, tmp_path):
    options = {"compile": EAGER, "train_cfg.max_iters": 4, "train_cfg.val_interval": 2, "train_cfg.val_begin": 1}
    cfg = seg_config(shapes, validate=True, **options)
    cfg.custom_hooks = [*(cfg.get("custom_hooks") or ()), dict(type="WatchBlocks")]
    WatchBlocks.seen = []
    train(cfg, tmp_path / "run")
    kinds = [kind for kind, _ in WatchBlocks.seen]
    assert kinds[:3] == ["training", "training", "validation"] and kinds.count("training") == 4
    assert all(compiled == (kind == "training") for kind, compiled in WatchBlocks.seen)


MANY = dict(arch=dict(embed_dims=16, num_layers=12), img_size=32)
ENCODERS = [
    dict(type="ARM", **MANY),
    pytest.param(dict(type="Vim", **MANY), marks=pytest.mark.slow),
    pytest.param(dict(type="VMamba", arch=dict(VMAMBA_ARCH, depths=(2, 2, 4, 2))), marks=pytest.mark.slow),
    dict(type="TimmBackbone", name="deit_tiny_patch16_224", img_size=32, depth=12, embed_dim=16, num_heads=2),
]


@pytest.mark.parametrize("model", ENCODERS, ids=["ARM", "Vim", "VMamba", "DeiT"])
def test_every_block_is_compiled(model):
    """Each block has a drop path rate of its own, and PyTorch stops compiling after 8 variants of a function."""
    torch.manual_seed(0)
    model, images = MODELS.build(dict(model, drop_path_rate=0.5)).train(), torch.randn(2, 3, 32, 32)
    results = []
    for compiled in (False, True):
        if compiled:
            number = len(compile_blocks(model, EAGER))
        torch.manual_seed(1)
        outputs = model(images)
        sum(output.square().mean() for output in outputs).backward()
        gradients = [weight.grad.flatten() for weight in model.parameters()]
        results.append([*outputs, torch.cat(gradients)])
        model.zero_grad()
    for expected, found in zip(*results, strict=True):
        assert (found - expected).norm() <= 1e-3 * expected.norm()
    assert number >= 10 and counters["frames"]["total"] == counters["frames"]["ok"] > 8
    assert not counters["graph_break"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("fast", "compile='fast': torch.compile refuses it .Unrecognized mode=fast"),
        (3, "compile=3: give True, a mode of torch.compile, or a dict"),
        ("", "compile='': give True, a mode of torch.compile, or a dict"),
        (dict(speed=2), r"compile=\{'speed': 2\}: .*unexpected keyword argument 'speed'"),
        (dict(dynamic="x"), r"compile=\{'dynamic': 'x'\}: torch.compile refuses it \(AssertionError\)"),
        (dict(backend=3), r"compile=\{'backend': 3\}: give the backend's name"),
    ],
)
def test_values_are_checked(value, message):
    with pytest.raises(ConfigError, match=message):
        compile_arguments(value)
    assert compile_arguments("reduce-overhead") == dict(mode="reduce-overhead") and compile_arguments(True) == {}
    assert compile_arguments(False) is compile_arguments(None) is None


def test_an_encoder_without_blocks_is_refused():
    model = MODELS.build(dict(type="TimmBackbone", name="regnety_002"))
    with pytest.raises(ConfigError, match="TimmBackbone has no blocks, so there is nothing to compile"):
        compile_blocks(model, EAGER)


def test_graphs_and_accumulated_gradients_are_refused(shapes, tmp_path):
    cfg = pretrain_config(shapes, **{"compile": "reduce-overhead", "optim_wrapper.accumulative_counts": 2})
    with pytest.raises(ConfigError, match="compile='reduce-overhead' with optim_wrapper.accumulative_counts=2"):
        train(cfg, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [dict(options={"triton.cudagraphs": True}), dict(backend="cudagraphs")])
def test_graphs_by_any_argument(arguments):
    assert records_graphs(arguments) and records_graphs(dict(mode="max-autotune"))
    assert not records_graphs({}) and not records_graphs(dict(mode="max-autotune-no-cudagraphs"))


def test_graphs_for_many_sizes_are_refused(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr("arm_toolkit.engine.compiled_blocks.compile_blocks", lambda model, arguments: [])
    cfg = det_config(shapes, **{"compile": "reduce-overhead", "train_cfg.max_epochs": 4})
    cfg.train_dataloader.dataset.pipeline[3].update(crop_type="absolute_range", crop_size=(48, 96))
    cfg.model.data_preprocessor.pad_size_divisor = 1
    with pytest.raises(ConfigError, match=f"compile='reduce-overhead': images have more than {SIZES} sizes"):
        train(cfg, tmp_path / "run")


def test_graphs_for_images_that_are_padded_to_one_size(shapes, tmp_path, monkeypatch):
    """Crops of a small image are smaller; the data preprocessor pads them."""
    monkeypatch.setattr("arm_toolkit.engine.compiled_blocks.compile_blocks", lambda model, arguments: [])
    cfg = det_config(shapes, **{"compile": "reduce-overhead", "train_cfg.max_epochs": 2})
    cfg.train_dataloader.dataset.pipeline[3].update(crop_type="absolute_range", crop_size=(48, 96))
    cfg.model.data_preprocessor.pad_size_divisor = 128
    train(cfg, tmp_path / "run")


def test_a_failing_compiler_is_one_line(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/nonexistent/g++"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(
        ConfigError, match="compile=True: .*No working C.. compiler found.*; without this key nothing is"
    ):
        train(pretrain_config(shapes, compile=True), tmp_path / "run")
