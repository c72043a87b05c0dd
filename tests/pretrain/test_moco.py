"""MoCo v3 on ARM and Vim: gradients, momentum, views, two processes, training, conversion.

Against the public code: test_golden_moco.py.
"""

import copy
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from arm_backbone.checkpoint.convert import convert
from arm_backbone.checkpoint.files import model_state, read_checkpoint
from arm_backbone.checkpoint.load import load_trunk
from arm_backbone.classifier import ARMClassifier
from arm_pretrain import ImageViews, ViewsPreprocessor
from arm_pretrain.moco import MomentumHook, momentum_at
from arm_pretrain.views import view_transform
from arm_toolkit.errors import ConfigError
from tests.helpers.paths import ROOT
from tests.helpers.runs import ARCH, logged, moco_config, train
from tests.helpers.tools import invoke
from tests.helpers.weights import assert_same_weights, weights
from tests.pretrain.moco_process import learn, pretrainer

FORMS = [dict(), dict(encoder="Vim"), dict(cls_token=None, global_pool="avg", freeze_patch_embed=False)]


@pytest.mark.parametrize("form", FORMS)
def test_gradients_reach_the_encoder_and_not_the_momentum_encoder(form):
    model = pretrainer(**form)
    learn(model, torch.randn(6, 2, 3, 32, 48))
    parameters = dict(model.named_parameters())
    without = {name for name, p in parameters.items() if p.grad is None or not p.grad.any()}
    fixed = {"base_encoder.pos_embed", "base_encoder.cls_pos_embed"} & parameters.keys()
    if "freeze_patch_embed" not in form:
        fixed |= {"base_encoder.patch_embed.proj.weight", "base_encoder.patch_embed.proj.bias"}
    assert without == fixed | {name for name in parameters if name.startswith("momentum_encoder.")}


def test_a_momentum_step_is_exact():
    model = pretrainer(momentum=0.9)
    with torch.no_grad():
        for parameter in model.base_encoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    before = copy.deepcopy(model.momentum_encoder.state_dict())
    model.update_momentum_encoder()
    after = dict(model.momentum_encoder.named_parameters())
    for name, ours in model.base_encoder.named_parameters():
        expected = before[name] * 0.9 + ours * (1 - 0.9) if ours.requires_grad else before[name]
        assert torch.equal(after[name], expected), name
    assert all(torch.equal(before[name], buffer) for name, buffer in model.momentum_encoder.named_buffers())


def test_with_accumulated_gradients_the_momentum_encoder_moves_once_per_step():
    model, moved = pretrainer(momentum=0.5), []
    runner = SimpleNamespace(
        model=model, max_iters=6, optim_wrapper=SimpleNamespace(_accumulative_counts=3), message_hub=Mock()
    )
    with torch.no_grad():
        model.base_encoder.patch_embed.requires_grad_(True).proj.bias += 1
    for runner.iter in range(6):
        MomentumHook().before_train_iter(runner, 0)
        before = model.momentum_encoder.patch_embed.proj.bias.clone()
        model.update_momentum_encoder()
        moved.append(not torch.equal(before, model.momentum_encoder.patch_embed.proj.bias))
    assert moved == [True, False, False, True, False, False]


def test_it_starts_from_equal_encoders_and_the_schedule_ends_at_one():
    model = pretrainer()
    for name, tensor in model.base_encoder.state_dict().items():
        assert torch.equal(tensor, model.momentum_encoder.state_dict()[name]), name
    assert momentum_at(0, 0.99) == pytest.approx(0.99) and momentum_at(1, 0.99) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(encoder="ViT"), "encoder='ViT' is unknown; give one of ARM, Vim"),
        (dict(temperature=0), "temperature=0: give a number above 0"),
        (dict(momentum=1.5), "momentum=1.5: give a number from 0 to 1"),
        (dict(cls_token=None), "global_pool='token' needs a class token"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        pretrainer(**arguments)


def test_a_batch_of_one_is_one_line(shapes, tmp_path):
    cfg = moco_config(shapes)
    cfg.train_dataloader.batch_size = 1
    with pytest.raises(
        ConfigError, match=r"a batch of one image.*set train_dataloader.batch_size to at least 2"
    ) as info:
        train(cfg, tmp_path / "one")
    assert "\n" not in str(info.value)


# ------------------------------------------------------------------------------------------------------------ views


def test_views_are_random_and_depend_on_the_seed_alone(shapes):
    class Seeded(int):
        seed = 3

    data = ImageViews(str(shapes / "coco/train2017"), size=(32, 48))
    first, again, other = data[Seeded(0)]["inputs"], data[Seeded(0)]["inputs"], data[0]["inputs"]
    assert first.shape == (2, 3, 32, 48) and first.dtype == torch.uint8
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first[0], first[1])
    data.augment = False
    centre = data[0]["inputs"]
    assert torch.equal(centre[0], centre[1])


def test_transforms_of_the_two_views(shapes):
    data = ImageViews(str(shapes / "coco/train2017"), size=224)
    for view, blur, solarize in zip(data.views, (1.0, 0.1), (0.0, 0.2), strict=True):
        crop, jitter, grey, blurred, solarized, flip = view.transforms
        assert crop.scale == (0.08, 1.0) and crop.size == (224, 224)
        assert jitter.p == 0.8 and isinstance(jitter.transforms[0], v2.ColorJitter)
        assert jitter.transforms[0].brightness == (0.6, 1.4) and jitter.transforms[0].saturation == (0.8, 1.2)
        assert grey.p == 0.2 and blurred.p == blur and solarized.p == solarize and flip.p == 0.5
        assert blurred.transforms[0].sigma == [0.1, 2.0] or blurred.transforms[0].sigma == (0.1, 2.0)
    black = Image.new("RGB", (64, 64))
    assert view_transform((32, 32), (0.5, 1.0), 1.0, 1.0)(black).size == (32, 32)


def test_views_are_normalized():
    views = [torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8) for _ in range(3)]
    preprocessor = ViewsPreprocessor(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0])
    result = preprocessor(dict(inputs=views, data_samples=["a", "b", "c"]), True)
    assert result["inputs"].shape == (3, 2, 3, 8, 8) and result["data_samples"] == ["a", "b", "c"]
    torch.testing.assert_close(result["inputs"][2, 1, 1], (views[2][1, 1].float() - 2) / 5)


# ---------------------------------------------------------------------------------------------------- two processes


@pytest.mark.slow
def test_two_processes_are_one_with_both_batches(tmp_path):
    """Loss, gradients, running statistics and momentum encoder over gloo; and the public code's two ranks."""
    model = pretrainer(momentum=0.9).double()
    views = torch.randn(6, 2, 3, 32, 48, dtype=torch.float64)
    torch.save(dict(model=model.state_dict(), views=views), tmp_path / "start.pth")
    loss = learn(model, views)
    worker = ROOT / "tests/pretrain/moco_process.py"
    environment = dict(PYTHONPATH=":".join(sys.path), OMP_NUM_THREADS="1", PATH="/usr/bin:/bin")
    processes = [
        subprocess.Popen([sys.executable, worker, tmp_path, str(rank)], env=environment, cwd=ROOT) for rank in (0, 1)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    results = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in (0, 1)]
    assert results[0]["loss"] != results[1]["loss"]
    torch.testing.assert_close(sum(result["loss"] for result in results) / 2, loss.detach(), rtol=1e-12, atol=0)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            mean = sum(result["gradients"][name] for result in results) / 2
            torch.testing.assert_close(mean, parameter.grad, rtol=1e-9, atol=1e-13, msg=name)
    for result in results:
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(result["state"][name], tensor, rtol=1e-12, atol=1e-14, msg=name)
    for rank, result in enumerate(results):
        for key, (found, expected) in result["golden"].items():
            assert found == pytest.approx(expected, rel=1e-9), (rank, key)


# ---------------------------------------------------------------------------------------------- training, conversion


@pytest.mark.slow
def test_it_trains_resumes_bit_equal_and_converts(shapes, tmp_path):
    """Resumed within the second epoch; then moco -> backbone and classifier, and into a model for finetuning."""
    cfg = moco_config(shapes, **{"default_hooks.checkpoint.interval": 3, "default_hooks.checkpoint.by_epoch": False})
    train(cfg, tmp_path / "whole")
    train(cfg, tmp_path / "rest", "--resume", str(tmp_path / "whole/iter_6.pth"))
    assert_same_weights(tmp_path / "whole/iter_8.pth", tmp_path / "rest/iter_8.pth", atol=0, rtol=0)
    momenta = [line["momentum"] for _, line in sorted(logged(tmp_path / "whole").items())]
    assert momenta == pytest.approx([momentum_at(i / 8, 0.99) for i in range(8)])

    source = tmp_path / "rest/iter_8.pth"
    for kind in ("backbone", "classifier"):
        result = invoke("convert_checkpoint.py", source, tmp_path / f"{kind}.pth", "--to", kind)
        assert result.returncode == 0, result.stderr
        assert "(moco, " in result.stdout
        pretrained, converted = weights(source), weights(tmp_path / f"{kind}.pth")
        assert all(torch.equal(tensor, pretrained[f"base_encoder.{name}"]) for name, tensor in converted.items())
        assert (
            {"norm.weight", "norm.bias"} <= converted.keys() if kind == "classifier" else "norm.weight" not in converted
        )
    model = ARMClassifier(ARCH, 64, num_classes=7)
    accounting = load_trunk(model, model_state(read_checkpoint(str(source)), where="moco"), "moco")
    assert set(accounting.new) == {"head.weight", "head.bias"}


def test_vim_converts_too():
    model = pretrainer(encoder="Vim")
    converted, accounting = convert(model.state_dict(), "classifier")
    assert "norm.weight" in converted and "norm.bias" not in converted
    assert all(torch.equal(tensor, model.state_dict()[f"base_encoder.{name}"]) for name, tensor in converted.items())
    dropped = {name.split(".")[0] for name in accounting.dropped}
    assert dropped == {"base_encoder", "momentum_encoder", "predictor"}
