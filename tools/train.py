"""Train the model of a configuration: detection, segmentation, classification or pretraining.

Example on one device (on several use tools/dist_train.sh):
    python tools/train.py seg_configs/upernet_arm_ti_camvid.py --cfg-options train_cfg.max_iters=300
"""

import argparse
from pathlib import Path

from arm_toolkit.engine.arguments import ConfigFile, add_train_arguments
from arm_toolkit.errors import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", action=ConfigFile, help="configuration file, e.g. det_configs/mask_rcnn_arm_b.py")
    add_train_arguments(parser)
    args = parser.parse_args()

    # imported here: --help and wrong arguments need no torch
    from arm_toolkit.engine.quiet import quiet_imports

    with quiet_imports():
        from arm_toolkit.engine.config import load_config
        from arm_toolkit.engine.launch import train

    train(load_config(args.config, args.cfg_options), args, Path(args.config).stem)


if __name__ == "__main__":
    run_tool(main, interrupted="interrupted; continue with --resume", prints_log=True)
