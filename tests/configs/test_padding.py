"""What padding does to features (docs/padding.md); test_configs.py checks that every test batch is one image."""

import torch

from arm_backbone import ARM


def test_why_padding_changes_features_with_four_scans():
    """Backward scans start in the padding; a single forward scan reaches padding below the image last."""
    torch.manual_seed(0)
    image = torch.randn(1, 3, 64, 64)
    padded = torch.nn.functional.pad(image, (0, 0, 0, 64))  # below, as for a taller image in the batch
    for scans, changed in ((4, True), (1, False)):
        model = ARM(dict(embed_dims=32, num_layers=4), img_size=64, scans=scans).eval()
        with torch.no_grad():
            model.pos_embed.zero_()  # otherwise resized to another grid
            alone, beside = model(image)[-1], model(padded)[-1][:, :, :4]
        assert (not torch.allclose(alone, beside, atol=1e-5)) == changed


def test_images_of_one_size_do_not_disturb_each_other():
    torch.manual_seed(0)
    model = ARM(dict(embed_dims=32, num_layers=4), img_size=64).eval()
    images = torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        together, alone = model(images), model(images[1:2])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[1:2], b)
