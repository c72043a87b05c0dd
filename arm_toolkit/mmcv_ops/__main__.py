"""Let an mmcv without compiled operators compute NMS and RoIAlign with torchvision.

That is all that Mask R-CNN needs of them. Compiled operators that are already there are used and left alone.
tools/install.sh does this; it is for environments that were made in another way.

Example, once torch, torchvision and mmcv are installed:
    python -m arm_toolkit.mmcv_ops
"""

import argparse

from ..errors import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m arm_toolkit.mmcv_ops",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    from .install import install

    print(install())


if __name__ == "__main__":
    run_tool(main)
