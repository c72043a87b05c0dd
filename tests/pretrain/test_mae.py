"""MAE on ARM and Vim: dropped patches, gradients, training, conversion. Against the public code: test_golden_mae.py."""

import pytest
import torch

from arm_backbone.arm import ARM
from arm_backbone.checkpoint.files import model_state, read_checkpoint
from arm_backbone.checkpoint.load import load_trunk
from arm_pretrain import MAEPretrainer
from arm_pretrain.masking import mask_patches
from tests.helpers.runs import ARCH, mae_config, train
from tests.helpers.tools import invoke
from tests.helpers.weights import assert_same_weights, weights

FORMS = [
    dict(),
    dict(cls_token="middle"),
    dict(cls_token="tail", decoder_blocks="mamba"),
    dict(scans=4),
    dict(scans=4, cls_token="middle"),
    dict(encoder="Vim", scans=2, cls_token="middle"),
    dict(encoder="Vim", scans=1),
]


def pretrainer(**arguments) -> MAEPretrainer:
    torch.manual_seed(0)
    small = dict(arch=dict(embed_dims=32, num_layers=4), img_size=(64, 96), decoder_dim=32, decoder_depth=2)
    return MAEPretrainer(**small | dict(decoder_heads=4) | arguments)


@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_receives_a_gradient(form):
    model = pretrainer(**form)
    model(torch.randn(4, 3, 64, 96), mode="loss")["loss"].backward()
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert [name for name, p in parameters if p.grad is None or not p.grad.any()] == []
    fixed = {"encoder.pos_embed", "encoder.cls_pos_embed"} & dict(model.named_parameters()).keys()
    assert fixed == {name for name, p in model.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize("form", FORMS)
def test_the_encoder_does_not_see_masked_patches(form):
    model = pretrainer(**form).eval()
    images, noise = torch.randn(3, 3, 64, 96), torch.rand(3, 24)
    tokens, kept, mask = model.encode(images, noise)
    masked = mask.view(3, 1, 4, 6).repeat_interleave(16, 2).repeat_interleave(16, 3).bool()
    other = torch.where(masked, torch.randn_like(images), images)
    assert torch.equal(model.encode(other, noise)[0], tokens)
    assert not torch.equal(model.encode(torch.where(masked, images, -images), noise)[0], tokens)
    assert tokens.shape[1] == kept.shape[1] == 6 + ("cls_token" in form)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_masked_is_the_plain_encoder(form):
    model = pretrainer(mask_ratio=0.0, **form).double().eval()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    tokens, _, mask = model.encode(images, torch.rand(2, 24))
    x, grid = model.encoder.embed(images)
    *_, plain = model.encoder.block_outputs(x, model.encoder.orders(grid))
    torch.testing.assert_close(tokens, plain, atol=1e-12, rtol=0)
    assert not mask.any()
    with pytest.raises(ValueError, match="mask_ratio=0.0 masks no patch"):
        model(images, mode="loss")


def test_kept_patches_stay_in_raster_order():
    kept, mask = mask_patches(torch.tensor([[0.9, 0.1, 0.8, 0.2], [0.3, 0.6, 0.5, 0.4]]), 0.5)
    assert kept.tolist() == [[1, 3], [0, 3]]
    assert mask.tolist() == [[1, 0, 1, 0], [0, 1, 1, 0]]


def test_predict_replaces_masked_patches_only():
    model = pretrainer().eval()
    images, noise = torch.randn(2, 3, 64, 96), torch.rand(2, 24)
    _, mask = model.predict_patches(images, noise)
    perfect = model.targets(images)
    torch.testing.assert_close(model.fill_in(images, perfect, mask), images, atol=1e-4, rtol=1e-4)
    changed = (model.fill_in(images, perfect + 1, mask) - images).abs().amax(1) > 1e-3
    masked = mask.view(2, 4, 6).repeat_interleave(16, 1).repeat_interleave(16, 2).bool()
    assert torch.equal(changed, masked)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(mask_ratio=1.0), "mask_ratio=1.0 leaves the encoder none of 24 patches to read"),
        (dict(mask_ratio=0.97), "mask_ratio=0.97 leaves the encoder none"),
        (dict(mask_ratio=-0.1), "mask_ratio=-0.1"),
        (dict(img_size=100), "img_size=100 does not divide into patches"),
        (dict(decoder_heads=3), "decoder_dim=32 must be a multiple of decoder_heads=3"),
        (dict(decoder_blocks="rnn"), "decoder_blocks='rnn' is unknown; give one of attention, mamba"),
        (dict(encoder="ViT"), "encoder='ViT' is unknown; give one of ARM, Vim"),
        (dict(decoder_depth=0), "decoder_depth=0: give 1 to 100"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        pretrainer(**arguments)


def test_images_of_another_size_are_an_error():
    with pytest.raises(ValueError, match="images of 96 x 96 pixels"):
        pretrainer()(torch.randn(1, 3, 96, 96), mode="loss")


@pytest.mark.slow
def test_it_trains_resumes_bit_equal_and_converts(shapes, tmp_path):
    """Resumed within the second epoch; then mae -> backbone and classifier, and into models for finetuning."""
    cfg = mae_config(shapes, **{"default_hooks.checkpoint.interval": 3, "default_hooks.checkpoint.by_epoch": False})
    train(cfg, tmp_path / "whole")
    train(cfg, tmp_path / "rest", "--resume", str(tmp_path / "whole/iter_6.pth"))
    assert_same_weights(tmp_path / "whole/iter_8.pth", tmp_path / "rest/iter_8.pth", atol=0, rtol=0)

    source = tmp_path / "rest/iter_8.pth"
    for kind in ("backbone", "classifier"):
        result = invoke("convert_checkpoint.py", source, tmp_path / f"{kind}.pth", "--to", kind)
        assert result.returncode == 0, result.stderr
        assert "(mae, " in result.stdout
        pretrained, converted = weights(source), weights(tmp_path / f"{kind}.pth")
        assert {f"encoder.{name}" for name in converted} == {n for n in pretrained if n.startswith("encoder.")}
        for name, tensor in converted.items():
            assert torch.equal(tensor, pretrained[f"encoder.{name}"].expand_as(tensor)), name
    model = ARM(ARCH, 96, cls_token="middle")
    accounting = load_trunk(model, model_state(read_checkpoint(str(source)), where="mae"), "mae")
    assert all(name.startswith("out_norms.") for name in accounting.new)

    refused = invoke("convert_checkpoint.py", source, tmp_path / "ar.pth", "--to", "pretrain")
    assert refused.returncode != 0
    assert "a mae checkpoint has no pretraining decoder" in refused.stderr
