"""Finding images in folders and lists."""

from pathlib import Path

import pytest

from arm_images.errors import DataError
from arm_images.find import find_images


def test_a_folder_is_searched_at_any_depth_in_sorted_order(image_folder):
    assert find_images(image_folder) == [image_folder / name for name in ("b/c/three.PNG", "b/two.jpg", "one.png")]


def test_lines_of_a_list_are_relative_to_its_folder_or_to_a_prefix(image_folder, tmp_path):
    files = [image_folder / "one.png", image_folder / "b/two.jpg"]
    listed = image_folder / "list.txt"
    listed.write_text("one.png\n\nb/two.jpg\n")
    assert find_images(str(listed)) == files
    elsewhere = tmp_path / "list.txt"
    elsewhere.write_text(listed.read_text())
    assert find_images(elsewhere, prefix=str(image_folder)) == files
    elsewhere.write_text("\n".join(map(str, files)))
    assert find_images(elsewhere) == files


def test_errors_name_the_path_and_the_remedy(image_folder):
    with pytest.raises(DataError, match="nowhere does not exist; give a folder of images"):
        find_images(image_folder / "nowhere")
    (image_folder / "empty").mkdir()
    with pytest.raises(DataError, match="no images under .*empty: expected files ending in .bmp, .jpeg"):
        find_images(image_folder / "empty")
    listed = image_folder / "list.txt"
    listed.write_text("one.png\ngone.png\n")
    with pytest.raises(DataError, match="lists 1 files that do not exist, first .*gone.png; set prefix"):
        find_images(listed)


def test_the_package_needs_neither_torch_nor_mmengine():
    """It loads no large package on import; `datasets` is imported only for a Hugging Face data set."""
    import subprocess
    import sys

    code = (
        "import sys, arm_images.find, arm_images.read\n"
        "print(sorted({'torch', 'mmengine', 'cv2', 'datasets', 'timm'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
