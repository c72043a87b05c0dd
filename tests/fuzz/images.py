"""Images and label maps mutated byte by byte, through the check and two training iterations."""

import io
import random
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from arm_toolkit.datasets.check_ade import check_ade
from arm_toolkit.datasets.check_images import check_images
from tests.fuzz.mutate import mutate_bytes
from tests.fuzz.session import compare_with_check, quiet
from tests.helpers.runs import pretrain_config, seg_config

MODES = ("L", "RGB", "RGBA", "CMYK", "P", "I;16", "LA", "1")


class ImageCase:
    """One mutated image or label map: what the check passes must train.

    Args:
        shapes: folder of the generated data set.
        folder: for the files of a case.
    """

    def __init__(self, shapes: Path, folder: Path) -> None:
        self.shapes, self.folder = folder / "shapes", folder
        shutil.copytree(shapes, self.shapes)
        self.pretrain, self.seg = quiet(pretrain_config(self.shapes)), quiet(seg_config(self.shapes))
        self.pretrain.train_cfg.max_epochs = 1
        self.pretrain.train_dataloader.batch_size = 8
        self.pretrain.param_scheduler.warmup = 0
        self.pretrain.custom_hooks = []
        self.seg.train_cfg.max_iters = 4
        self.seg.param_scheduler[1].end = 4

    def __call__(self, rng: random.Random) -> tuple[str, str]:
        task = rng.choice(("image", "image of a pair", "label map"))
        pattern = {"image": "coco/train2017/*", "image of a pair": "ade/images/training/*",
                   "label map": "ade/annotations/training/*"}[task]  # fmt: skip
        file = rng.choice(sorted(self.shapes.glob(pattern)))
        content = file.read_bytes()
        try:
            what = f"{task} {file.name}: {_mutate(file, content, rng)}"
            if task == "image":
                report, cfg = check_images(self.shapes / "coco/train2017"), self.pretrain
            else:
                report, cfg = (
                    check_ade(self.shapes / "ade", self.seg.model.decode_head.num_classes, decode=True),
                    self.seg,
                )
            return compare_with_check(what, report, cfg, self.folder / "run")
        finally:
            file.write_bytes(content)


def _mutate(file: Path, content: bytes, rng: random.Random) -> str:
    if rng.random() < 0.6:
        data, what = mutate_bytes(content, rng)
        file.write_bytes(data)
        return what
    image = Image.open(io.BytesIO(content))
    what = rng.choice(("mode", "size", "orientation", "values"))
    kind = "PNG" if file.suffix == ".png" else "JPEG"
    options = {}
    if what == "mode":
        mode = rng.choice(MODES)
        kind = "PNG" if mode not in ("L", "RGB", "CMYK") else "TIFF" if mode == "CMYK" and kind == "PNG" else kind
        grey = np.asarray(image.convert("L"))
        image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
        what = f"mode {mode}"
    elif what == "size":
        size = rng.choice(((1, 1), (1, 2000), (3000, 2), (97, 96), (400, 20)))
        image, what = image.resize(size, Image.Resampling.NEAREST), f"size {size}"
    elif what == "orientation":
        exif = Image.Exif()
        exif[274] = rng.randrange(10)
        options, what = dict(exif=exif), f"orientation {exif[274]}"
    else:
        value = rng.choice((0, 1, 4, 5, 254, 255))
        colour = value if image.mode in ("L", "P") else (value,) * 3
        image, what = Image.new(image.mode, image.size, colour), f"all {value}"
    image.save(file, kind, **options)
    return what
