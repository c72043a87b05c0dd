"""A published encoder as a backbone of transformers: equal features, training, and a model that comes back equal.

docs/publishing.md has this code, without the sizes.
"""

from pathlib import Path

import pytest
import timm
import torch

from tests.helpers.published import publish_small

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (this project does not need it)"
)
NARROW = dict(
    d_model=32,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=32,
    decoder_ffn_dim=32,
    num_queries=5,
    num_labels=3,
)


@pytest.fixture(scope="module")
def encoder(shapes, tmp_path_factory) -> str:
    return f"local-dir:{publish_small('backbone', shapes, tmp_path_factory.mktemp('encoder')).folder}"


def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def comes_back(model, folder: Path) -> None:
    """The model predicts the same after it was saved and loaded, and every parameter gets a gradient."""
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    model.eval().save_pretrained(folder)
    again, report = type(model).from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(again.eval()(images()).logits, model(images()).logits)


@torch.no_grad()
def test_features_are_those_of_timm(encoder):
    backbone = transformers.TimmBackbone.from_pretrained(encoder, out_indices=(0, 1, 2, 3)).eval()
    expected = timm.create_model(encoder, pretrained=True, features_only=True, out_indices=(0, 1, 2, 3)).eval()(
        images()
    )
    assert all(map(torch.equal, backbone(images()).feature_maps, expected))
    assert backbone.channels == [32] * 4


def test_upernet(encoder, tmp_path):
    backbone = transformers.TimmBackbone.from_pretrained(encoder, out_indices=(0, 1, 2, 3))
    config = transformers.UperNetConfig(
        backbone_config=backbone.config, hidden_size=32, auxiliary_in_channels=32, auxiliary_channels=16, num_labels=4
    )
    model = transformers.UperNetForSemanticSegmentation(config)
    model.backbone.load_state_dict(backbone.state_dict())
    result = model(images(), labels=torch.randint(4, (2, 64, 96)))
    assert result.logits.shape == (2, 4, 64, 96)
    result.loss.backward()
    comes_back(model, tmp_path)


def test_detr(encoder, tmp_path):
    from transformers.conversion_mapping import (
        get_checkpoint_conversion_mapping,
        register_checkpoint_conversion_mapping,
    )
    from transformers.core_model_loading import WeightRenaming

    before = get_checkpoint_conversion_mapping("DetrModel")
    renamed = [*before, WeightRenaming(r"mixer\.o_proj", "mixer.out_proj")]
    register_checkpoint_conversion_mapping("DetrModel", renamed, overwrite=True)
    backbone = transformers.TimmBackbone.from_pretrained(encoder, out_indices=(3,))
    model = transformers.DetrForObjectDetection(transformers.DetrConfig(backbone_config=backbone.config, **NARROW))
    model.model.backbone.model.load_state_dict(backbone._backbone.state_dict())
    labels = [dict(class_labels=torch.tensor([1]), boxes=torch.tensor([[0.5, 0.5, 0.2, 0.2]]))] * 2
    model(images(), labels=labels).loss.backward()
    try:
        comes_back(model, tmp_path)
    finally:
        register_checkpoint_conversion_mapping("DetrModel", before, overwrite=True)
