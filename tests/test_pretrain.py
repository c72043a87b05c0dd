"""Autoregressive pretraining: causality, targets, the decoder, and exactness against the reference code's outputs."""

import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from arm_pretrain import ARMPretrainer, ImageCrops
from arm_pretrain.clusters import cluster_patches
from arm_pretrain.decoder import skip_blocks
from arm_pretrain.sequence import Sequence, image_pattern
from arm_pretrain.targets import normalised_pixels, patchify, unpatchify


def pretrainer(img_size=96, side=2, **kwargs):
    torch.manual_seed(0)
    arguments = dict(arch=dict(embed_dims=32, num_layers=4), img_size=img_size, cluster_side=side, decoder_dim=64)
    return ARMPretrainer(**arguments | kwargs)


def test_every_parameter_receives_a_gradient():
    model = pretrainer()
    model(torch.randn(2, 3, 96, 96), mode="loss")["loss"].backward()
    without = [
        n
        for n, p in model.named_parameters()
        if p.requires_grad and not (p.grad is not None and p.grad.abs().sum() > 0)
    ]
    assert without == []
    assert not model.encoder.pos_embed.requires_grad


@pytest.mark.parametrize("img_size", [96, (64, 128)])
def test_a_prediction_knows_earlier_clusters_only(img_size):
    """Changing cluster k + 1 never changes the prediction of cluster k + 1 or earlier; every earlier one matters."""
    model = pretrainer(img_size).double().eval()
    images = torch.randn(1, 3, *model.encoder.img_size, dtype=torch.float64, requires_grad=True)
    clusters, patches = model.patches.shape
    predictions = model(images).view(clusters - 1, -1)
    for predicted in range(1, clusters):
        (grad,) = torch.autograd.grad(predictions[predicted - 1].sum(), images, retain_graph=True)
        influence = patchify(grad, 16)[0].abs().sum(-1)[model.patches].sum(-1)  # of each cluster
        assert (influence[predicted:] == 0).all()
        assert (influence[:predicted] > 0).all()


def test_loss_is_the_error_of_normalised_pixels():
    model = pretrainer().eval()
    images = torch.randn(2, 3, 96, 96)
    target = normalised_pixels(model.target_patches(images))
    torch.testing.assert_close(target.mean(-1), torch.zeros_like(target[..., 0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(target.var(-1), torch.ones_like(target[..., 0]), atol=1e-3, rtol=0)
    expected = (model(images) - target).square().mean()
    torch.testing.assert_close(model(images, mode="loss")["loss"], expected)
    assert target.shape == (2, 8 * 4, 768)


def test_patches_go_back_to_the_image():
    images = torch.randn(2, 3, 32, 64)
    patches = patchify(images, 16)
    assert patches.shape == (2, 8, 768)
    # second patch of the first row, flattened as (row, column, channel)
    torch.testing.assert_close(patches[0, 1].view(16, 16, 3).permute(2, 0, 1), images[0, :, :16, 16:32])
    torch.testing.assert_close(unpatchify(patches, 16, (2, 4)), images)


def test_reconstruction_replaces_all_but_the_first_cluster():
    model = pretrainer().eval()
    images = torch.randn(1, 3, 96, 96)
    result = model(images, mode="predict")
    torch.testing.assert_close(result[..., :32, :32], images[..., :32, :32])
    assert not torch.allclose(result[..., :32, 32:64], images[..., :32, 32:64])
    # a perfect prediction would give the image back
    model.predict_clusters = lambda x, patches: normalised_pixels(model.target_patches(x, patches))
    torch.testing.assert_close(model(images, mode="predict"), images, atol=1e-4, rtol=1e-4)


def test_clusters_and_mask_by_hand():
    assert cluster_patches(4, 4, 2).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert cluster_patches(12, 12, 4)[1].tolist()[:5] == [4, 5, 6, 7, 16]
    sequence = Sequence(1, image_pattern(3, 3, None), 2, 0)
    assert sequence.visible(torch.device("cpu")).tolist() == [2, 2, 4, 4]
    assert [sequence.most_visible(count) for count in (1, 2, 3, 4)] == [2, 2, 4, 4]


def test_skip_features_by_depth():
    assert skip_blocks(12, 4) == (5, 7, 9, 11)
    assert skip_blocks(24, 4) == (11, 15, 19, 23)
    assert skip_blocks(12, 1) == (11,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(img_size=96, side=4), "does not divide into clusters of 4 x 4"),
        (dict(img_size=100), "img_size=100 does not divide into patches"),
        (dict(img_size=64, side=4), "nothing to predict"),
        (dict(decoder_dim=100), "decoder_dim=100 must be a multiple of 64"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        pretrainer(**arguments)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="images of 64 x 96 pixels"):
        pretrainer()(torch.randn(1, 3, 64, 96))


@pytest.fixture
def picture_folder(tmp_path):
    """Nested folders with an RGB, a greyscale and a palette picture, and something that is no picture."""
    rng = np.random.default_rng(0)
    (tmp_path / "b" / "c").mkdir(parents=True)
    rgb = Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8))
    rgb.save(tmp_path / "one.png")
    rgb.convert("L").save(tmp_path / "b" / "two.jpg")
    rgb.convert("P").save(tmp_path / "b" / "c" / "three.PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_folders_and_lists(picture_folder):
    dataset = ImageCrops(str(picture_folder), size=(32, 48))
    assert sorted(f.name for f in dataset.files) == ["one.png", "three.PNG", "two.jpg"]
    for i in range(3):
        item = dataset[i]["inputs"]
        assert item.shape == (3, 32, 48) and item.dtype == torch.uint8
    listed = picture_folder / "list.txt"
    listed.write_text("one.png\nb/two.jpg\n")
    assert len(ImageCrops(str(listed))) == 2
    assert len(ImageCrops(str(listed), prefix=str(picture_folder))) == 2


def test_bad_data_is_named(picture_folder, capsys):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        ImageCrops(str(picture_folder / "nowhere"))
    with pytest.raises(ValueError, match="no image"):
        (picture_folder / "empty").mkdir()
        ImageCrops(str(picture_folder / "empty"))
    listed = picture_folder / "list.txt"
    listed.write_text("one.png\ngone.png\n")
    with pytest.raises(FileNotFoundError, match="1 files that do not exist, first .*gone.png"):
        ImageCrops(str(listed))


def test_unreadable_image_is_fatal_or_left_out_but_never_silent(picture_folder, caplog):
    broken = picture_folder / "a_broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(OSError, match="cannot read .*a_broken.jpg.*on_error='skip'"):
        ImageCrops(str(picture_folder))[0]
    messages = []
    import arm_pretrain.data

    original, arm_pretrain.data.print_log = arm_pretrain.data.print_log, lambda text, **_: messages.append(text)
    try:
        item = ImageCrops(str(picture_folder), on_error="skip", size=32)[0]
    finally:
        arm_pretrain.data.print_log = original
    assert item["inputs"].shape == (3, 32, 32)
    assert len(messages) == 1 and "a_broken.jpg" in messages[0]


def test_images_of_every_mode_come_out_right(tmp_path):
    """One picture, dark on the left and bright on the right, in all the ways that files hold one."""
    grey = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    rgb = Image.fromarray(np.stack([grey] * 3, 2))
    rgb.save(tmp_path / "rgb.png")
    Image.fromarray(grey).save(tmp_path / "grey.png")
    rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(tmp_path / "palette.png")
    rgb.convert("RGBA").save(tmp_path / "alpha.png")
    rgb.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=98)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: to be turned by a quarter
    rgb.rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif, quality=98)
    dataset = ImageCrops(str(tmp_path), size=(48, 64), augment=False)
    assert len(dataset) == 7
    for i, file in enumerate(dataset.files):
        image = dataset[i]["inputs"].float()
        assert image.shape == (3, 48, 64), file
        assert (image.mean((0, 1)) - torch.linspace(0, 255, 64)).abs().max() < 6, file


def test_tar_shards(picture_folder, tmp_path_factory):
    """The same crops as from the files; anything else in an archive is passed by."""
    shards = tmp_path_factory.mktemp("shards")
    for name, files in (("a.tar", ["one.png", "notes.txt"]), ("b.tar", ["b/two.jpg", "b/c/three.PNG"])):
        with tarfile.open(shards / name, "w") as tar:
            for file in files:
                tar.add(picture_folder / file, arcname=file)
    packed, loose = (ImageCrops(str(path), size=32, augment=False) for path in (shards, picture_folder))
    images = {Path(item["data_samples"]).name: item["inputs"] for item in (loose[i] for i in range(3))}
    assert len(packed) == 3
    for i in range(3):
        item = packed[i]
        assert torch.equal(item["inputs"], images[Path(item["data_samples"]).name])
    assert packed[0]["data_samples"] == str(shards / "a.tar/one.png")
    assert len(ImageCrops(str(shards / "b.tar"))) == 2
    copies = pickle.loads(pickle.dumps(packed))  # to workers that are started anew
    assert torch.equal(copies[2]["inputs"], packed[2]["inputs"])
    with tarfile.open(shards / "c.tar", "w:gz") as tar:
        tar.add(picture_folder / "one.png", arcname="one.png")
    with pytest.raises(ValueError, match="c.tar is no uncompressed tar archive .*tar -cf"):
        ImageCrops(str(shards))
    (shards / "c.tar").unlink()
    whole = (shards / "b.tar").read_bytes()
    (shards / "b.tar").write_bytes(whole[:600])  # the first picture is cut off
    with pytest.raises((OSError, ValueError), match="b.tar"):
        [ImageCrops(str(shards / "b.tar"))[i] for i in range(2)]
