"""Initialisation: a seed gives the recorded weights, and models built on meta get the same distributions."""

import pytest
import torch
from torch import nn

from arm_backbone import ARMPyramid, init_parameters
from arm_backbone.arm import ARM
from arm_backbone.classifier import ARMClassifier
from arm_backbone.openmmlab import LinearProbe
from arm_pretrain import ARMPretrainer

ARCH = dict(embed_dims=32, num_layers=4)
SEPARATOR = dict(type="cluster", value="embedding", position="SCS")


def pretrainer(**kwargs) -> ARMPretrainer:
    return ARMPretrainer(ARCH, img_size=96, cluster_side=2, decoder_dim=64, **kwargs)


MODELS = {
    "backbone": lambda: ARM(ARCH, img_size=64, cls_token="middle", in_chans=1, drop_path_rate=0.5, frozen_stages=1),
    "classifier": lambda: ARMClassifier(ARCH, img_size=64, num_classes=7, cls_token="tail"),
    "reference": lambda: ARMClassifier(ARCH, img_size=64, num_classes=7, cls_token=None, reference_init=True),
    "probe": lambda: LinearProbe(ARCH, img_size=64, num_classes=7),
    "pretrainer": pretrainer,
    "embedded separators": lambda: pretrainer(separator=SEPARATOR),
    "constant separators": lambda: pretrainer(separator=dict(type="token"), target="pixels"),
    "pyramid": lambda: ARMPyramid(32, dict(type="BN")),
}


@pytest.mark.parametrize(
    ("build", "total", "next_number"),
    [
        (lambda: ARM(ARCH, img_size=64, cls_token="middle"), 25656.39103833795, 0.9103809595108032),
        (
            lambda: ARMClassifier(ARCH, img_size=64, num_classes=7, reference_init=True),
            23787.281594854834,
            0.19399160146713257,
        ),
        (lambda: pretrainer(separator=SEPARATOR), 32459.949001844852, 0.6309838891029358),
    ],
    ids=["backbone", "classifier", "pretrainer"],
)
def test_a_seed_gives_the_weights_it_always_gave(build, total, next_number):
    """Compare the sum of all absolute values and the generator's next number with recorded ones."""
    torch.manual_seed(0)
    state = build().state_dict()
    assert sum(tensor.double().abs().sum().item() for tensor in state.values()) == pytest.approx(total, rel=1e-6)
    assert torch.rand(1).item() == next_number


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and all buffers, including those that are not saved."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def built_on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        model = MODELS[name]()
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in tensors(model).values():
            tensor.fill_(torch.nan if tensor.is_floating_point() else -1)
    torch.manual_seed(2)
    init_parameters(model)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_distributions_of_a_model_built_on_meta(name):
    """Constants are equal; random values have the same mean and standard deviation within sampling error."""
    ordinary = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        ordinary.append(tensors(MODELS[name]()))
    found = built_on_meta(name)
    assert tensors(found).keys() == ordinary[0].keys()
    constants = 0
    for key, tensor in tensors(found).items():
        one, two = (other[key] for other in ordinary)
        assert tensor.dtype == one.dtype and tensor.requires_grad == one.requires_grad, key
        if torch.equal(one, two):
            constants += 1
            assert torch.equal(tensor, one), key
            continue
        fixed = one == two  # a constant part of a tensor, such as the delta biases that reference_init zeroes
        assert torch.equal(tensor[fixed], one[fixed]), key
        drawn, both = tensor[~fixed], torch.cat([one[~fixed], two[~fixed]])
        error = 6 * both.std() / len(drawn) ** 0.5
        assert (drawn.mean() - both.mean()).abs() < error and (drawn.std() - both.std()).abs() < error, key
        assert drawn.abs().max() < 1.5 * both.abs().max(), key
    assert constants > 4 or name == "pyramid"


@pytest.mark.parametrize("name", [name for name in MODELS if name != "pyramid"])
def test_a_model_built_on_meta_trains(name):
    model = built_on_meta(name).train()
    if isinstance(model, ARMPretrainer):
        loss = model(torch.randn(2, 3, 96, 96), mode="loss")["loss"]
    else:
        output = model(torch.randn(4, model.patch_embed.proj.in_channels, 64, 64))
        loss = sum((x * torch.randn_like(x)).sum() for x in (output if isinstance(output, tuple) else [output]))
    loss.backward()
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    before = {key: p.detach().clone() for key, p in trained.items()}
    torch.optim.SGD(trained.values(), lr=100.0).step()  # some gradients are tiny
    assert trained
    assert [key for key, p in trained.items() if torch.equal(p, before[key]) or not p.isfinite().all()] == []


def test_drop_path_of_a_model_built_on_meta():
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in built_on_meta("backbone").blocks]
    assert rates == pytest.approx([0, 0, 0.5 / 3, 1 / 3])


def test_a_module_that_cannot_be_initialised_is_named():
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(1))

    with pytest.raises(TypeError, match=r"1 \(Scale\) has no reset_parameters"):
        init_parameters(nn.Sequential(nn.Linear(2, 2), Scale()))
