"""Evaluate a trained model: box and mask AP of a detector, mIoU of a segmentor, top-1 accuracy of a classifier.

Example that also draws every test image with its predictions (on several devices use tools/dist_test.sh):
    python tools/test.py seg_configs/upernet_arm_ti_camvid.py work_dirs/camvid/iter_300.pth --show-dir predictions
"""

import argparse
from pathlib import Path

from arm_toolkit.engine.arguments import ConfigFile, add_arguments, add_dtype
from arm_toolkit.errors import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", action=ConfigFile, help="configuration that the checkpoint was trained with")
    parser.add_argument("checkpoint", help="trained checkpoint (.pth)")
    parser.add_argument(
        "--out",
        help="save the predictions: a folder of label maps (segmentation), a .json file (detection: COCO's results; "
        "classification: the most likely classes), or a .pkl file (mmengine's: instances or logits)",
    )
    parser.add_argument(
        "--show-dir", help="draw every test image with its predictions into this folder (not for classification)"
    )
    parser.add_argument(
        "--tta", action="store_true", help="test-time augmentation, several scales and flips (not for classification)"
    )
    add_dtype(parser)
    add_arguments(parser)
    args = parser.parse_args()

    # imported here: --help and wrong arguments need no torch
    from arm_toolkit.engine.quiet import quiet_imports

    with quiet_imports():
        from arm_toolkit.engine.config import load_config
        from arm_toolkit.engine.launch import test

    test(load_config(args.config, args.cfg_options), args, Path(args.config).stem)


if __name__ == "__main__":
    run_tool(main)
