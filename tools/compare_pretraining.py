"""Compare choices of AR pretraining (ARM, STAR, random order, patch units, raw pixels, none) on photographs, judged by
semantic segmentation of a drive that is left out of all training. Hours on a CPU; finished steps are not run again.

Example, with a list of photographs and CamVid in ADE's layout (images/training, annotations/training, meta.json):
    python tools/compare_pretraining.py --photographs data/photos.txt --prefix data --camvid data/camvid \\
        --held-out 0006R0
"""

import argparse
from pathlib import Path

from arm_toolkit.errors import run_tool
from arm_toolkit.experiments.comparison import Comparison
from arm_toolkit.experiments.steps import finished


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="text file with one path a line")
    parser.add_argument("--prefix", type=Path, required=True, help="folder that its lines start from")
    parser.add_argument("--camvid", type=Path, required=True, help="segmentation data in ADE's layout")
    parser.add_argument("--held-out", required=True, help="what the names of the left-out drive's frames begin with")
    parser.add_argument(
        "--folder", type=Path, default=Path("work_dirs/comparison"), help="of all results (%(default)s)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="(0 1)")
    parser.add_argument("--epochs", type=int, help="of every pretraining, instead of the configurations'")
    parser.add_argument("--finetune-iters", type=int, default=250, help="of every finetuning and probe (%(default)s)")
    parser.add_argument("--report", action="store_true", help="run nothing, write the table of what is finished so far")
    args = parser.parse_args()
    options = () if args.epochs is None else (f"train_cfg.max_epochs={args.epochs}",)
    comparison = Comparison(
        args.folder,
        args.photographs,
        args.prefix,
        args.camvid,
        args.held_out,
        tuple(args.seeds),
        options,
        args.finetune_iters,
    )
    path = comparison.report(finished(args.folder)) if args.report else comparison.run()
    print(f"\n{path.read_text()}\n{path}")


if __name__ == "__main__":
    run_tool(main)
