"""What a pretrained model predicts, as numbers and as a picture."""

import numpy as np
import pytest
import torch
from PIL import Image

from arm_pretrain import ARMPretrainer
from arm_pretrain.targets import normalised_pixels, patchify
from helpers.runs import pretrain_config, train
from helpers.tools import call_tool

ARCH = dict(embed_dims=32, num_layers=4)


def pretrainer(**arguments) -> ARMPretrainer:
    torch.manual_seed(0)
    return ARMPretrainer(**dict(arch=ARCH, img_size=96, cluster_side=2, decoder_dim=64) | arguments).eval()


def test_free_running_uses_nothing_but_what_was_given():
    """Beyond the given clusters only the patches' mean and deviation come from the truth."""
    model = pretrainer(target="pixels")
    images, others = torch.randn(2, 1, 3, 96, 96)
    patches = model.draw_patches()
    mixed = others.clone()
    mixed[..., :32, :64] = images[..., :32, :64]  # the first two clusters
    one, two = (model.generate(x, 2, patches) for x in (images, mixed))
    torch.testing.assert_close(one, two)
    assert not torch.allclose(model.reconstruct(images, patches), model.reconstruct(mixed, patches))


def test_free_running_from_all_but_one_is_the_prediction_from_the_true_past():
    model = pretrainer(order="column_forward")
    images = torch.randn(2, 3, 96, 96)
    patches = model.draw_patches()
    free, past = model.generate(images, 8, patches), model.reconstruct(images, patches)
    last = patches[-1]
    torch.testing.assert_close(patchify(free, 16)[:, last], patchify(past, 16)[:, last])
    assert torch.equal(patchify(free, 16)[:, patches[:-1].flatten()], patchify(images, 16)[:, patches[:-1].flatten()])
    assert torch.equal(model.generate(images, 9, patches), images)


def test_a_perfect_model_draws_the_image_whatever_it_is_given():
    model = pretrainer(separator=dict(type="token", value="ones"))
    images = torch.randn(1, 3, 96, 96)
    truth = normalised_pixels(patchify(images, 16))
    model.predict_clusters = lambda x, patches: torch.cat([truth[:, patches.flatten()], torch.ones(1, 1, 768)], 1)
    torch.testing.assert_close(model.generate(images, 0), images, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("given", [0, 10])
def test_what_cannot_be_given(given):
    with pytest.raises(ValueError, match="give 1 to 9 clusters"):
        pretrainer().generate(torch.randn(1, 3, 96, 96), given)


@pytest.fixture(scope="module")
def checkpoint(shapes, tmp_path_factory):
    work = tmp_path_factory.mktemp("pretrain") / "run"
    train(pretrain_config(shapes, **{"train_cfg.max_epochs": 2}), work)
    return work / "epoch_2.pth"


def test_the_tool_draws_a_row_for_each_image(checkpoint, shapes, tmp_path, capsys):
    out = tmp_path / "made" / "grid.png"
    arguments = [checkpoint, shapes / "coco/val2017", "--out", out, "--count", 3, "--given", 2]
    assert call_tool("reconstruct.py", *arguments) == 0
    assert "3 images" in capsys.readouterr().out
    picture = np.asarray(Image.open(out).convert("RGB")).astype(float)
    assert picture.shape[0] > 3 * 100 and picture.shape[1] > 4 * 100
    # the columns differ: input, prediction, free running, error
    quarter = picture.shape[1] // 4
    columns = [picture[60:, i * quarter : (i + 1) * quarter] for i in range(4)]
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


def test_a_checkpoint_of_something_else(tmp_path, shapes, capfd):
    path = tmp_path / "backbone.pth"
    torch.save(dict(state_dict=dict(a=torch.ones(1)), meta={}), path)
    assert call_tool("reconstruct.py", path, shapes / "coco/val2017", "--out", tmp_path / "a.png") == 2
    assert "is no training checkpoint of AR pretraining" in capfd.readouterr().err
