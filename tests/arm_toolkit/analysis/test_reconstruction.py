"""Reconstructions: teacher-forced and free-running predictions, and their figure."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from PIL import Image

from arm_pretrain import ARMPretrainer
from arm_pretrain.protocol import Reconstruction, Reconstructs
from arm_pretrain.targets import normalized_pixels, patchify
from arm_toolkit.analysis.reconstruction import draw, load_pretrainer
from tests.helpers.runs import mae_config, moco_config, pretrain_config, train
from tests.helpers.tools import call_tool

ARCH = dict(embed_dims=32, num_layers=4)


def pretrainer(**arguments) -> ARMPretrainer:
    torch.manual_seed(0)
    return ARMPretrainer(**dict(arch=ARCH, img_size=96, cluster_side=2, decoder_dim=64) | arguments).eval()


def test_free_running_depends_on_the_given_clusters_only():
    """This holds for target="pixels"; normalized pixels also use the mean and deviation of the true patches."""
    model = pretrainer(target="pixels")
    images, others = torch.randn(2, 1, 3, 96, 96)
    patches = model.draw_patches()
    mixed = others.clone()
    mixed[..., :32, :64] = images[..., :32, :64]  # the first two clusters
    one, two = (model.free_running(x, 2, patches) for x in (images, mixed))
    torch.testing.assert_close(one, two)
    assert not torch.allclose(model.teacher_forced(images, patches), model.teacher_forced(mixed, patches))


def test_free_running_from_all_but_one_cluster_equals_teacher_forcing():
    model = pretrainer(order="column_forward")
    images = torch.randn(2, 3, 96, 96)
    patches = model.draw_patches()
    free, past = model.free_running(images, 8, patches), model.teacher_forced(images, patches)
    last = patches[-1]
    torch.testing.assert_close(patchify(free, 16)[:, last], patchify(past, 16)[:, last])
    assert torch.equal(patchify(free, 16)[:, patches[:-1].flatten()], patchify(images, 16)[:, patches[:-1].flatten()])
    assert torch.equal(model.free_running(images, 9, patches), images)


def test_a_perfect_model_reproduces_the_image_from_nothing():
    model = pretrainer(separator=dict(type="token", value="ones"))
    images = torch.randn(1, 3, 96, 96)
    truth = normalized_pixels(patchify(images, 16))
    model.predict_clusters = lambda x, patches: torch.cat([truth[:, patches.flatten()], torch.ones(1, 1, 768)], 1)
    torch.testing.assert_close(model.free_running(images, 0), images, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("given", [0, 10])
def test_given_out_of_range(given):
    with pytest.raises(ValueError, match="give 1 to 9 clusters"):
        pretrainer().free_running(torch.randn(1, 3, 96, 96), given)


@pytest.fixture(scope="module")
def checkpoint(shapes, tmp_path_factory):
    work = tmp_path_factory.mktemp("pretrain") / "run"
    train(pretrain_config(shapes, **{"train_cfg.max_epochs": 2}), work)
    return work / "epoch_2.pth"


class Echo(BaseModel):
    """Another pretraining model, whose reconstructions are half as bright as the images."""

    images_per_sequence, units_per_image, predicts_pixels = 1, 5, True

    def forward(self, inputs: torch.Tensor, data_samples: list | None = None, mode: str = "tensor") -> torch.Tensor:
        return inputs

    def losses_by_position(self, images: torch.Tensor) -> dict[str, float]:
        return dict(all=0.0)

    def reconstruct(self, images: torch.Tensor, given: int) -> Reconstruction:
        return Reconstruction({f"half, given {given}": images / 2}, "a note")


def test_any_model_with_the_protocol_is_drawn():
    model = Echo(dict(type="ImgDataPreprocessor", mean=[0, 0, 0], std=[255, 255, 255]))
    assert isinstance(model, Reconstructs)
    png = draw(model, torch.rand(2, 3, 32, 64), 4)
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    assert pixels.shape[1] > 2 * pixels.shape[0]  # three columns of wide images in two rows


@pytest.fixture(scope="module")
def masked(shapes, tmp_path_factory) -> Path:
    """A MAE checkpoint with random weights, which a training wrote after one epoch."""
    work = tmp_path_factory.mktemp("mae") / "run"
    train(mae_config(shapes, **{"train_cfg.max_epochs": 1, "param_scheduler.warmup": 0}), work)
    return work / "epoch_1.pth"


def test_mae_shows_what_it_sees_and_predicts(masked, shapes, tmp_path):
    """Grey where patches are masked, predictions only there; the seed decides what is masked."""
    model, _ = load_pretrainer(masked)
    images = torch.randn(2, 3, 96, 96)
    result = model.reconstruct(images, None)
    (seen,), (predicted,) = result.seen.values(), result.columns.values()
    assert list(result.seen) == ["seen, 9 of 36 patches"]
    grey = patchify(seen, 16).abs().amax(2) == 0
    assert grey.sum(1).tolist() == [27, 27]
    assert torch.equal(patchify(seen, 16)[~grey], patchify(images, 16)[~grey])
    assert torch.equal(patchify(predicted, 16)[~grey], patchify(images, 16)[~grey])
    assert (patchify(predicted, 16)[grey] - patchify(images, 16)[grey]).abs().amax(1).min() > 0.1
    figures = {}
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        out = tmp_path / f"{name}.png"
        arguments = ("--out", out, "--count", 2, "--seed", seed)
        assert call_tool("reconstruct.py", masked, shapes / "coco/val2017", *arguments) == 0
        figures[name] = np.asarray(Image.open(out).convert("RGB"))
    assert figures["one"].shape[1] > 4 * 100  # input, what is seen, prediction, error
    assert np.array_equal(figures["one"], figures["same"]) and not np.array_equal(figures["one"], figures["other"])


def test_the_hook_logs_mae_by_rows(masked):
    line = (masked.parent / next(masked.parent.glob("*/vis_data/scalars.json"))).read_text()
    assert all(f'"position/row_{row}"' in line for row in range(1, 7))
    assert list(masked.parent.glob("*/vis_data/vis_image/reconstruction_*.png"))


def test_what_reconstruct_cannot_draw_is_one_line(masked, shapes, tmp_path, capfd):
    assert call_tool("reconstruct.py", masked, shapes / "coco/val2017", "--given", 2, "--out", tmp_path / "a.png") == 2
    assert "given=2: MAEPretrainer predicts all masked patches at once" in capfd.readouterr().err
    cfg = moco_config(shapes)
    meta = dict(cfg=cfg.pretty_text)
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict(), meta=meta), tmp_path / "moco.pth")
    assert call_tool("reconstruct.py", tmp_path / "moco.pth", shapes / "coco/val2017", "--out", tmp_path / "a.png") == 2
    error = capfd.readouterr().err
    assert "MoCoPretrainer cannot show reconstructions, because it predicts no images" in error
    assert len(error.strip().splitlines()) == 1 and not (tmp_path / "a.png").exists()


def test_a_checkpoint_with_the_former_spelling_of_the_target(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    target = 'target="normalised_pixels", type="ARMPretrainer"'
    assert "type='ARMPretrainer'" in content["meta"]["cfg"]
    content["meta"]["cfg"] = content["meta"]["cfg"].replace("type='ARMPretrainer'", target)
    torch.save(content, tmp_path / "old.pth")
    assert load_pretrainer(tmp_path / "old.pth")[0].target == "normalized_pixels"


def test_the_tool_draws_one_row_per_image(checkpoint, shapes, tmp_path, capsys):
    out = tmp_path / "made" / "grid.png"
    arguments = [checkpoint, shapes / "coco/val2017", "--out", out, "--count", 3, "--given", 2]
    assert call_tool("reconstruct.py", *arguments) == 0
    assert "3 images" in capsys.readouterr().out
    figure = np.asarray(Image.open(out).convert("RGB")).astype(float)
    assert figure.shape[0] > 3 * 100 and figure.shape[1] > 4 * 100
    # input, teacher-forced, free-running and error differ
    quarter = figure.shape[1] // 4
    columns = [figure[60:, i * quarter : (i + 1) * quarter] for i in range(4)]
    assert all(np.abs(a - b).mean() > 1 for a, b in zip(columns, columns[1:], strict=False))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--given", 0], "give 1 to 9 clusters"),
        (["--count", 0], "--count 0: give at least 1"),
        (["--out", "grid.jpg"], "give a name ending in .png"),
    ],
)
def test_bad_arguments_are_one_line(checkpoint, shapes, tmp_path, monkeypatch, capfd, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert call_tool("reconstruct.py", checkpoint, shapes / "coco/val2017", *arguments) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error:") and message in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (None, "is not a checkpoint of a pretraining run"),
        ("model = dict(type='MaskRCNN')", "is not a checkpoint of a pretraining run"),
        ("model = dict(type='ImgDataPreprocessor')", "ImgDataPreprocessor cannot show reconstructions"),
    ],
)
def test_checkpoints_of_other_models_are_one_line(tmp_path, shapes, capfd, cfg, message):
    path = tmp_path / "other.pth"
    torch.save(dict(state_dict=dict(a=torch.ones(1)), meta=dict(cfg=cfg) if cfg else {}), path)
    assert call_tool("reconstruct.py", path, shapes / "coco/val2017", "--out", tmp_path / "a.png") == 2
    assert message in capfd.readouterr().err
