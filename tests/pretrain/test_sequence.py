"""The papers' ablations of pretraining: order, unit, several images, separators and targets."""

import pytest
import torch

from arm_pretrain import decoder
from arm_pretrain.clusters import ORDERS, cluster_order
from arm_pretrain.separators import SEPARATOR, image_pattern, separator_values
from arm_pretrain.sequence import Element, Sequence
from arm_pretrain.targets import normalized_pixels, patchify
from arm_pretrain.tokenizers import DVAETokenizer, KMeansTokenizer, fit_centroids, nearest
from tests.helpers.small_models import pretrainer
from tests.helpers.tools import call_tool

ARCH = dict(embed_dims=32, num_layers=4)


def test_orders_on_a_grid_of_three_by_three():
    expected = {
        "row_forward": [0, 1, 2, 3, 4, 5, 6, 7, 8],
        "row_backward": [2, 1, 0, 5, 4, 3, 8, 7, 6],
        "column_forward": [0, 3, 6, 1, 4, 7, 2, 5, 8],
        "column_backward": [6, 3, 0, 7, 4, 1, 8, 5, 2],
        "reverse": [8, 7, 6, 5, 4, 3, 2, 1, 0],
    }
    for order, numbers in expected.items():
        assert cluster_order(3, 3, order).tolist() == numbers
    for order in ORDERS:
        assert sorted(cluster_order(2, 5, order).tolist()) == list(range(10))
    assert cluster_order(2, 3, "column_backward").tolist() == [3, 0, 4, 1, 5, 2]
    drawn = {tuple(cluster_order(3, 3, "random").tolist()) for _ in range(20)}
    assert len(drawn) > 10


def test_positions_of_separators():
    s = SEPARATOR
    assert image_pattern(4, 2, None) == [0, 1, 2, 3]
    assert image_pattern(4, 2, "SC") == [s, 0, 1, 2, 3]
    assert image_pattern(4, 2, "CS") == [0, 1, 2, 3, s]
    assert image_pattern(4, 2, "SCS") == [s, 0, 1, s, 2, 3]
    assert image_pattern(4, 2, "CSC") == [0, 1, s, 2, 3, s]


def test_sequences_by_hand():
    plain = Sequence(2, image_pattern(2, 1, None), 3, 0)
    assert plain.inputs == [Element(0, 0), Element(0, 1), Element(1, 0)]
    assert plain.targets == [Element(0, 1), Element(1, 0), Element(1, 1)]  # includes the next image's first cluster
    assert plain.visible_lengths == [3, 6, 9] and plain.query_lengths == [3, 3, 3]
    star = Sequence(2, image_pattern(2, 1, "SC"), 3, 1)
    assert [e.step for e in star.inputs] == [SEPARATOR, 0, 1] * 2
    assert [e.step for e in star.targets] == [0, 1, SEPARATOR] * 2  # equation 7: one more separator
    assert star.visible_lengths == [1, 4, 7, 8, 11, 14] and star.query_lengths == [3, 3, 1] * 2
    assert star.of_image(1).tolist() == [7, 8, 9, 10, 11, 12]
    after = Sequence(1, image_pattern(2, 1, "CS"), 3, 1)
    assert [e.step for e in after.inputs] == [0, 1] and [e.step for e in after.targets] == [1, SEPARATOR]


def test_values_of_separators():
    assert separator_values("zeros", 4, 3).abs().sum() == 0 and separator_values("ones", 4, 3).min() == 1
    identity = separator_values("identity", 16, 3)[0, :, 0].view(4, 4)
    assert torch.equal(identity, torch.eye(4))
    with pytest.raises(ValueError, match="square number of tokens, not 8"):
        separator_values("identity", 8, 3)


@pytest.mark.parametrize(
    ("arguments", "predicted", "separators"),
    [
        (dict(img_size=192, cluster_side=4), 128, 0),  # ARM: 128 of 144
        (dict(img_size=192, cluster_side=4, separator=dict(type="cluster")), 144, 16),  # STAR: all, and the separator
        (dict(img_size=192, cluster_side=4, separator=dict(type="token", value="ones")), 144, 1),
        (dict(img_size=12, patch_size=1, cluster_side=1, target="pixels"), 143, 0),  # iGPT: 144 units
        (dict(img_size=192, cluster_side=1), 143, 0),
    ],
)
def test_numbers_of_predicted_tokens(arguments, predicted, separators):
    model = pretrainer(**arguments)
    size = model.encoder.img_size
    with torch.no_grad():
        assert model(torch.randn(1, 3, *size).double()).shape[1] == predicted + separators


CASES = {
    **{order: dict(order=order) for order in ORDERS},
    "rectangular image": dict(img_size=(64, 128), order="column_backward"),
    "patches": dict(cluster_side=1, img_size=64),
    "pixels": dict(patch_size=1, cluster_side=1, img_size=6, target="pixels"),
    "packed": dict(images_per_sequence=2, img_size=64),
    **{
        f"{kind} {position}": dict(
            images_per_sequence=2, img_size=64, separator=dict(type=kind, value=value, position=position)
        )
        for kind, value, position in (
            ("cluster", "identity", "SC"),
            ("cluster", "embedding", "CS"),
            ("token", "zeros", "SCS"),
            ("token", "ones", "CSC"),
        )
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_prediction_depends_on_all_earlier_elements_and_on_no_later_one(case):
    """Measured by gradients. Earlier elements are those before it in the same image and all of the images before."""
    model = pretrainer(**CASES[case])
    images = torch.randn(model.images_per_sequence, 3, *model.encoder.img_size, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    patches = model.draw_patches()
    sequence = model.sequences[model.images_per_sequence]
    predictions = model.predict_clusters(images, patches, model.images_per_sequence)[0]
    inputs = [e for e in sequence.inputs if e.step != SEPARATOR]
    for j, part in enumerate(predictions.split(sequence.query_lengths)):
        (grad,) = torch.autograd.grad(part.sum(), images, retain_graph=True)
        influence = patchify(grad, model.encoder.patch_size).abs().sum(2)[:, patches].sum(2)  # (N, M)
        seen = {e for e in sequence.inputs[: j + 1] if e.step != SEPARATOR}
        for element in inputs:
            assert (influence[element.image, element.step] > 0) == (element in seen), (j, element)


def test_one_image_without_separators_is_arm():
    arm, star = pretrainer(), pretrainer(images_per_sequence=1, separator=dict(type="none"))
    assert arm.state_dict().keys() == star.state_dict().keys()
    images = torch.randn(2, 3, 96, 96).double()
    assert torch.equal(arm(images), star(images))


def test_a_random_order_predicts_the_cluster_at_the_queried_position():
    """The decoder's position embedding, the target and the past all follow the drawn order."""
    model = pretrainer(order="random")
    images = torch.randn(1, 3, 96, 96).double()
    torch.manual_seed(5)
    patches = model.draw_patches()
    torch.manual_seed(5)
    loss = model(images, mode="loss")["loss"]
    predictions = model.predict_clusters(images, patches)
    target = normalized_pixels(patchify(images, 16))[:, patches[1:].flatten()]
    torch.testing.assert_close(loss, (predictions - target).square().mean())
    # another position of the last target changes its prediction and no other
    swapped = model.decoder_pos_embed.clone()
    swapped[:, patches[-1]] = swapped[:, patches[0]]
    before = predictions.clone()
    model.decoder_pos_embed.copy_(swapped)
    after = model.predict_clusters(images, patches)
    side = patches.shape[1]
    assert torch.equal(after[:, :-side], before[:, :-side]) and not torch.allclose(after[:, -side:], before[:, -side:])


def test_the_chunk_size_of_the_queries_does_not_matter(monkeypatch):
    model = pretrainer(images_per_sequence=4, img_size=64, separator=dict(type="cluster"))
    images = torch.randn(8, 3, 64, 64).double()
    together = model(images)
    for queries in (1, 7, 40):
        monkeypatch.setattr(decoder, "QUERIES", queries)
        torch.testing.assert_close(model(images), together)


@pytest.mark.parametrize("value", ["zeros", "ones", "embedding", "identity"])
def test_every_parameter_of_star_receives_a_gradient(value):
    model = pretrainer(images_per_sequence=2, separator=dict(type="cluster", value=value)).train()
    model(torch.randn(2, 3, 96, 96).double(), mode="loss")["loss"].backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and not p.grad.abs().sum() > 0]
    assert without == []


def test_separators_are_predicted_as_their_constant():
    """Predicting every cluster and every separator's constant exactly gives loss 0."""
    model = pretrainer(images_per_sequence=2, img_size=64, separator=dict(type="cluster", value="identity"))
    images, patches = torch.randn(2, 3, 64, 64).double(), model.patches
    target = normalized_pixels(patchify(images, 16))
    separator = torch.eye(2).flatten().double().view(1, 4, 1).expand(1, 4, 768)
    clusters = [target[i : i + 1, p] for i in range(2) for p in patches]
    perfect = torch.cat([*clusters[:4], separator, *clusters[4:], separator], 1)
    assert model.loss(images, perfect, patches) == 0
    assert model.loss(images, torch.zeros_like(perfect), patches) > 0.5


def test_with_separators_every_cluster_is_predicted():
    model = pretrainer(separator=dict(type="cluster"), order="column_forward")
    images = torch.randn(1, 3, 96, 96).double()
    result = model(images, mode="predict")
    assert not torch.allclose(result[..., :32, :32], images[..., :32, :32])
    model.predict_clusters = lambda x, order: torch.cat(
        [normalized_pixels(patchify(x, 16))[:, order.flatten()], torch.zeros(1, 4, 768).double()], 1
    )
    torch.testing.assert_close(model(images, mode="predict"), images, atol=1e-4, rtol=1e-4)


def test_the_target_pixels_is_not_normalized():
    model = pretrainer(target="pixels")
    images = torch.randn(1, 3, 96, 96).double()
    expected = (model(images) - patchify(images, 16)[:, model.patches[1:].flatten()]).square().mean()
    torch.testing.assert_close(model(images, mode="loss")["loss"], expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(order="spiral"), "order='spiral' is unknown"),
        (dict(target="edges"), "target='edges' is unknown"),
        (dict(separator=dict(type="line")), "separator type 'line'"),
        (dict(separator=dict(type="token", position="CC")), "position 'CC'"),
        (dict(separator=dict(type="cluster", value="twos")), "value 'twos'"),
        (dict(separator=dict(kind="cluster")), "kind"),
    ],
)
def test_unknown_options_are_named(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        pretrainer(**arguments)


def test_a_batch_that_is_not_a_multiple_of_the_sequence():
    with pytest.raises(ValueError, match="a batch of 3 images does not divide into sequences of 2"):
        pretrainer(images_per_sequence=2)(torch.randn(3, 3, 96, 96).double())


# ----------------------------------------------------------------------------------------- tokens


def test_k_means_finds_separate_groups():
    torch.manual_seed(0)
    centres = torch.eye(3) * 10
    patches = torch.cat([centre + 0.1 * torch.randn(50, 3) for centre in centres])
    found = fit_centroids([patches[:70], patches[70:]], 3)
    assert torch.cdist(found, centres).min(0).values.max() < 0.1
    tokens = nearest(patches, found).view(3, 50)
    assert all(len(set(row.tolist())) == 1 for row in tokens) and len(set(tokens[:, 0].tolist())) == 3
    with pytest.raises(ValueError, match="2 patches are too few for 3 tokens"):
        fit_centroids([patches[:2]], 3)


def test_tokens_are_fitted_and_predicted(shapes, tmp_path, capsys):
    """The tool fits them; the loss is the cross entropy of each patch's token, in the order of the sequence."""
    file = tmp_path / "kmeans.safetensors"
    assert call_tool("fit_tokenizer.py", shapes / "coco/train2017", file, "--tokens", 8, "--size", 96) == 0
    assert "8 tokens from 576 patches" in capsys.readouterr().out
    tokenizer = KMeansTokenizer(str(file))
    model = pretrainer(target=dict(type="KMeansTokenizer", checkpoint=str(file)), order="column_forward").float()
    assert not any("centroids" in name for name in model.state_dict())
    images = torch.randn(2, 3, 96, 96)
    logits = model(images)
    assert logits.shape == (2, 32, 8)
    target = tokenizer(images)[:, model.draw_patches()[1:].flatten()]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
    torch.testing.assert_close(model(images, mode="loss")["loss"], expected)
    with pytest.raises(ValueError, match="predicts tokens, not pixels"):
        model(images, mode="predict")
    assert call_tool("fit_tokenizer.py", shapes / "coco/train2017", file, "--tokens", 10**6, "--size", 96) == 2
    assert "too few for 1000000 tokens" in capsys.readouterr().err


def test_the_dvae_loads_weights_with_their_published_names(tmp_path):
    """They are read from a small file in the layout of DALL-E's encoder; there is one token per patch."""
    torch.manual_seed(0)
    path = tmp_path / "encoder.pth"
    torch.save({}, path)
    DVAETokenizer._load, load = lambda self, path: None, DVAETokenizer._load
    try:
        model = DVAETokenizer(str(path), width=8, vocab_size=20)
    finally:
        DVAETokenizer._load = load
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # so that tokens differ
    theirs = {n.replace(".weight", ".w").replace(".bias", ".b"): p.detach() for n, p in model.named_parameters()}
    assert "blocks.group_4.block_2.res_path.conv_4.w" in theirs and "blocks.group_2.block_1.id_path.w" in theirs
    torch.save(theirs, path)
    loaded = DVAETokenizer(str(path), width=8, vocab_size=20)
    images = torch.randn(2, 3, 48, 32)
    tokens = loaded(images)
    assert tokens.shape == (2, 6) and torch.equal(tokens, model(images)) and len(tokens.unique()) > 1
    torch.save({n: t for n, t in theirs.items() if "output" not in n}, path)
    with pytest.raises(ValueError, match="not an encoder of DALL-E's dVAE: .*missing .*blocks.output.conv"):
        DVAETokenizer(str(path), width=8, vocab_size=20)
