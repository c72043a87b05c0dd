"""docs/model_zoo.md is up to date with the configurations."""

import pytest

from arm_toolkit.analysis.model_zoo import SECTIONS, configurations, paper_result, row
from tests.helpers.paths import ROOT

PAGE = (ROOT / "docs/model_zoo.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| `")]
PATHS = [path for section in SECTIONS for path in configurations(section.folder)]


def test_has_every_configuration_in_order():
    written = [path for folder in ("det_configs", "seg_configs", "cls_configs", "pretrain/configs") for path in
               (ROOT / folder).rglob("*.py") if "_base_" not in path.parts]  # fmt: skip
    assert len(PATHS) == len(written)
    assert [cells[0] for cells in ROWS] == [f"`{path.rpartition('/')[2].removesuffix('.py')}`" for path in PATHS]


def test_repeats_the_papers_results():
    assert [cells[4] for cells in ROWS] == [paper_result(path) for path in PATHS]
    assert paper_result("det_configs/mask_rcnn_arm_b.py") == "49.2 box AP, 43.9 mask AP"
    assert paper_result("seg_configs/upernet_arm_b.py") == "47.7 mIoU"
    assert paper_result("cls_configs/arm_b_in1k_tail.py") == "82.86 top-1 (STAR)"
    assert paper_result("det_configs/mask_rcnn_arm_h.py") == "-"


@pytest.mark.parametrize(
    "path",
    [
        "det_configs/mask_rcnn_arm_ti_cpu.py",
        "seg_configs/upernet_arm_b.py",
        "cls_configs/arm_l_in1k.py",
        "pretrain/configs/ablations/target_tokens.py",
        "pretrain/configs/star/images_4.py",
    ],
)
def test_row_is_up_to_date(path):
    assert ROWS[PATHS.index(path)] == list(row(path))
