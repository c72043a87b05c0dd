"""What padding does to features (docs/padding.md); test_configs.py checks that every test batch is one image."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from arm_backbone import ARM
from tests.helpers.paths import ROOT

VITDET = sorted(path.stem for path in (ROOT / "det_configs").glob("*_vitdet.py"))


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


@pytest.mark.parametrize("name", VITDET)
def test_vitdet_tests_on_the_grid_that_it_trains_on(name):
    """Whatever an image's shape, a patch keeps the position that it had in training."""
    cfg = Config.fromfile(ROOT / f"det_configs/{name}.py")
    crop = next(step.crop_size for step in cfg.train_pipeline if step.type == "RandomCrop")
    (resize,) = (step for step in cfg.test_pipeline if step.type == "Resize")
    augmented = [step.scale for step in cfg.tta_pipeline[1].transforms[0]]
    assert resize.scale == crop and max(augmented) == crop  # no image is larger than the square
    with DefaultScope.overwrite_default_scope("mmdet"):
        preprocessor = MODELS.build(cfg.model.data_preprocessor)
    for height, width in ((640, 1024), (1024, 683), (110, 70)):
        image = torch.full((3, height, width), 255, dtype=torch.uint8)
        for training in (True, False):
            padded = preprocessor(dict(inputs=[image]), training=training)["inputs"]
            assert tuple(padded.shape) == (1, 3, *crop), (height, width, training)
            assert padded[..., :height, :width].all() and not padded[..., height:, :].any()  # right and below
