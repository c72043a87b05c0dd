"""Image files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """one.png (RGB), b/two.jpg (greyscale) and b/c/three.PNG (palette), all of 60 x 80 pixels, and notes.txt."""
    folder = tmp_path / "images"
    rng = np.random.default_rng(0)
    (folder / "b" / "c").mkdir(parents=True)
    rgb = Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8))
    rgb.save(folder / "one.png")
    rgb.convert("L").save(folder / "b" / "two.jpg")
    rgb.convert("P").save(folder / "b" / "c" / "three.PNG")
    (folder / "notes.txt").write_text("not an image")
    return folder
