"""Evaluate a detector (COCO box and mask AP) or a segmenter (mIoU).

Example, with pictures of the predictions beside the truth (several devices: tools/dist_test.sh):
    python tools/test.py seg_configs/upernet_arm_ti_camvid.py work_dirs/camvid/iter_300.pth --show-dir pictures
"""

import argparse

from arm_toolkit.engine.launch import main_test
from arm_toolkit.errors import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="configuration that the checkpoint was trained with")
    parser.add_argument("checkpoint", help="trained checkpoint (.pth)")
    parser.add_argument("--out", help="save results: a .pkl file (detection) or a folder of label maps (segmentation)")
    parser.add_argument("--show-dir", help="draw every test image with its predictions into this folder")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation: several scales and flips")
    main_test(None, parser)


if __name__ == "__main__":
    run_tool(main)
