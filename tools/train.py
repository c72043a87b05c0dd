"""Train a detector, a segmenter or a pretraining model from its configuration.

Example, on one device (several: tools/dist_train.sh):
    python tools/train.py seg_configs/upernet_arm_ti_camvid.py --cfg-options train_cfg.max_iters=300
"""

import argparse

from arm_toolkit.engine.launch import main_train
from arm_toolkit.errors import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="configuration file, e.g. det_configs/mask_rcnn_arm_b.py")
    main_train(None, parser)


if __name__ == "__main__":
    run_tool(main)
