"""docs/results.md is up to date, every configuration that it names exists, and only logs fill our column."""

import json

from arm_toolkit.analysis.results import COMPARISONS, LOGS, ours, page
from tests.helpers.paths import ROOT


def test_the_page_is_up_to_date():
    assert (ROOT / "docs/results.md").read_text() == page() + "\n"


def test_every_row_has_a_cell_per_column_and_configurations_that_exist():
    for comparison in COMPARISONS:
        for row in comparison.rows:
            assert len(row.paper) == len(comparison.columns), row.name
            assert all((ROOT / path).is_file() for path in row.configurations), row.configurations


def test_only_a_log_fills_our_column(tmp_path):
    dense = ("det_configs/mask_rcnn_arm_b.py", "seg_configs/upernet_arm_b.py")
    assert ours(dense, tmp_path) == "–"
    (tmp_path / "mask_rcnn_arm_b.json").write_text(json.dumps({"coco/bbox_mAP": 0.4917, "coco/segm_mAP": 0.4}))
    assert ours(dense, tmp_path) == "box AP 49.2, mask AP 40.0"
    filled = {path for c in COMPARISONS for row in c.rows for path in row.configurations if ours((path,)) != "–"}
    assert len(filled) == len(list(LOGS.glob("*.json")))
