"""ARM's pretraining: causality, targets, clusters and the decoder. Against the reference code: test_golden.py."""

import pytest
import torch

from arm_pretrain import ARMPretrainer
from arm_pretrain.clusters import cluster_patches
from arm_pretrain.decoder import skip_blocks
from arm_pretrain.protocol import Reconstructs
from arm_pretrain.separators import image_pattern
from arm_pretrain.sequence import Sequence
from arm_pretrain.targets import normalized_pixels, patchify, unpatchify
from tests.helpers.runs import pretrain_config, train
from tests.helpers.weights import assert_same_weights


def pretrainer(img_size=96, side=2, **kwargs):
    torch.manual_seed(0)
    arguments = dict(arch=dict(embed_dims=32, num_layers=4), img_size=img_size, cluster_side=side, decoder_dim=64)
    return ARMPretrainer(**arguments | kwargs)


@pytest.mark.parametrize("encoder", ["ARM", "Vim"])
def test_every_parameter_receives_a_gradient(encoder):
    model = pretrainer(encoder=encoder)
    model(torch.randn(2, 3, 96, 96), mode="loss")["loss"].backward()
    without = [
        n
        for n, p in model.named_parameters()
        if p.requires_grad and not (p.grad is not None and p.grad.abs().sum() > 0)
    ]
    assert without == []
    assert not model.encoder.pos_embed.requires_grad


@pytest.mark.parametrize(("img_size", "encoder"), [(96, "ARM"), ((64, 128), "ARM"), (96, "Vim")])
def test_a_prediction_depends_on_earlier_clusters_only(img_size, encoder):
    """The gradient of a prediction is zero in its own and all later clusters, and nonzero in all earlier ones."""
    model = pretrainer(img_size, encoder=encoder).double().eval()
    images = torch.randn(1, 3, *model.encoder.img_size, dtype=torch.float64, requires_grad=True)
    clusters, patches = model.patches.shape
    predictions = model(images).view(clusters - 1, -1)
    for predicted in range(1, clusters):
        (grad,) = torch.autograd.grad(predictions[predicted - 1].sum(), images, retain_graph=True)
        influence = patchify(grad, 16)[0].abs().sum(-1)[model.patches].sum(-1)  # of each cluster
        assert (influence[predicted:] == 0).all()
        assert (influence[:predicted] > 0).all()


def test_loss_is_the_error_of_normalized_pixels():
    model = pretrainer().eval()
    images = torch.randn(2, 3, 96, 96)
    target = normalized_pixels(model.target_patches(images))
    torch.testing.assert_close(target.mean(-1), torch.zeros_like(target[..., 0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(target.var(-1), torch.ones_like(target[..., 0]), atol=1e-3, rtol=0)
    expected = (model(images) - target).square().mean()
    torch.testing.assert_close(model(images, mode="loss")["loss"], expected)
    assert target.shape == (2, 8 * 4, 768)


def test_unpatchify_inverts_patchify():
    images = torch.randn(2, 3, 32, 64)
    patches = patchify(images, 16)
    assert patches.shape == (2, 8, 768)
    # second patch of the first row, flattened as (row, column, channel)
    torch.testing.assert_close(patches[0, 1].view(16, 16, 3).permute(2, 0, 1), images[0, :, :16, 16:32])
    torch.testing.assert_close(unpatchify(patches, 16, (2, 4)), images)


def test_predict_replaces_all_but_the_first_cluster():
    model = pretrainer().eval()
    images = torch.randn(1, 3, 96, 96)
    result = model(images, mode="predict")
    torch.testing.assert_close(result[..., :32, :32], images[..., :32, :32])
    assert not torch.allclose(result[..., :32, 32:64], images[..., :32, 32:64])
    # a perfect prediction would give the image back
    model.predict_clusters = lambda x, patches: normalized_pixels(model.target_patches(x, patches))
    torch.testing.assert_close(model(images, mode="predict"), images, atol=1e-4, rtol=1e-4)


def test_clusters_and_visible_tokens_by_hand():
    assert cluster_patches(4, 4, 2).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert cluster_patches(12, 12, 4)[1].tolist()[:5] == [4, 5, 6, 7, 16]
    sequence = Sequence(1, image_pattern(3, 3, None), 2, 0)
    assert sequence.visible(torch.device("cpu")).tolist() == [2, 2, 4, 4]
    assert [sequence.most_visible(count) for count in (1, 2, 3, 4)] == [2, 2, 4, 4]


def test_blocks_of_the_skip_features():
    assert skip_blocks(12, 4) == (5, 7, 9, 11)
    assert skip_blocks(24, 4) == (11, 15, 19, 23)
    assert skip_blocks(12, 1) == (11,)
    for depth in (0, 101, 10**12):
        with pytest.raises(ValueError, match=f"decoder_depth={depth}: give 1 to 100"):
            skip_blocks(12, depth)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(img_size=96, side=4), "does not divide into clusters of 4 x 4"),
        (dict(img_size=100), "img_size=100 does not divide into patches"),
        (dict(img_size=64, side=4), "leaves nothing to predict"),
        (dict(decoder_dim=100), "decoder_dim=100 must be a multiple of 64"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        pretrainer(**arguments)


def test_images_of_another_size_are_an_error():
    with pytest.raises(ValueError, match="images of 64 x 96 pixels"):
        pretrainer()(torch.randn(1, 3, 64, 96))


def test_the_former_spelling_of_the_target_is_accepted():
    """Otherwise old configurations, also those inside checkpoints, with "normalised_pixels" would not build."""
    old, new = pretrainer(target="normalised_pixels"), pretrainer(target="normalized_pixels")
    images = torch.randn(1, 3, 96, 96)
    assert old.target == new.target
    assert torch.equal(old(images, mode="loss")["loss"], new(images, mode="loss")["loss"])


def test_a_run_with_the_former_spelling_can_be_resumed(shapes, tmp_path):
    cfg = pretrain_config(shapes, **{"train_cfg.max_epochs": 2, "default_hooks.checkpoint.interval": 1})
    cfg.model.target = "normalised_pixels"
    train(cfg, tmp_path / "old")
    cfg.model.target = "normalized_pixels"
    train(cfg, tmp_path / "new", "--resume", str(tmp_path / "old/epoch_1.pth"))
    assert_same_weights(tmp_path / "old/epoch_2.pth", tmp_path / "new/epoch_2.pth")


def test_it_implements_what_tools_hooks_and_sharding_need():
    model = pretrainer()
    assert isinstance(model, Reconstructs)
    assert model.units_per_image == 9 and model.predicts_pixels
    assert len(list(model.sharded_parts())) == 4 + 4
    assert all(callable(getattr(model, name)) for name in model.forward_methods())
