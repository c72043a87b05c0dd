"""Print the parameters and FLOPs of each part of a model, including the selective scan. Loads no weights.

Examples:
  a classifier, one of ours or of timm:
    python tools/model_info.py arm_base_patch16_224
    python tools/model_info.py deit_base_patch16_224 --img-size 384
  a detector (800 x 1280 pixels by default), a segmentor, a pretraining model:
    python tools/model_info.py det_configs/mask_rcnn_arm_b.py
    python tools/model_info.py seg_configs/upernet_arm_b.py --img-size 512 2048
    python tools/model_info.py pretrain/configs/arm_b.py
"""

import argparse

from arm_toolkit.analysis.model_info import describe
from arm_toolkit.engine.environment import check_environment
from arm_toolkit.errors import ConfigError, run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="NAME_OR_CONFIG", help="model name in timm's registry, or a .py file")
    parser.add_argument(
        "--img-size", type=int, nargs="+", metavar="N", help="pixels: side, or height and width (default: the model's)"
    )
    args = parser.parse_args()
    size = args.img_size
    if size and (len(size) > 2 or min(size) < 1):
        raise ConfigError(f"--img-size {' '.join(map(str, size))}: give one side, or height and width")
    check_environment()
    print(describe(args.model, tuple((size * 2)[:2]) if size else None))


if __name__ == "__main__":
    run_tool(main)
