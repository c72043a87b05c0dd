"""Compare variants of AR pretraining on photographs: ARM, STAR, random order, patch units, raw pixels, none.

The measure is semantic segmentation of a held-out drive, which is excluded from all training. This takes hours on a
CPU; a second run skips the finished steps.

Examples, with a list of photographs and CamVid in ADE's layout (images/training, annotations/training, meta.json):
    python tools/compare_pretraining.py --photographs data/photos.txt --prefix data --camvid data/camvid \\
        --held-out 0006R0
  the table of the steps finished so far, from another terminal:
    python tools/compare_pretraining.py --photographs data/photos.txt --prefix data --camvid data/camvid \\
        --held-out 0006R0 --report
"""

import argparse
from pathlib import Path

from arm_toolkit.errors import run_tool
from arm_toolkit.experiments.comparison import Comparison
from arm_toolkit.experiments.steps import finished_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="text file with one path per line")
    parser.add_argument("--prefix", type=Path, required=True, help="folder that these paths are relative to")
    parser.add_argument("--camvid", type=Path, required=True, help="segmentation data in ADE's layout")
    parser.add_argument("--held-out", required=True, help="prefix of the held-out drive's frame names")
    parser.add_argument(
        "--folder", type=Path, default=Path("work_dirs/comparison"), help="folder for the results (%(default)s)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="seeds of every training (0 1)")
    parser.add_argument("--epochs", type=int, help="epochs of every pretraining (default: the configuration's)")
    parser.add_argument(
        "--finetune-iters", type=int, default=250, help="iterations of every finetuning and probe (%(default)s)"
    )
    parser.add_argument("--report", action="store_true", help="run nothing; write the table of the finished steps")
    args = parser.parse_args()
    comparison = Comparison(
        folder=args.folder,
        photographs=args.photographs,
        prefix=args.prefix,
        camvid=args.camvid,
        held_out=args.held_out,
        seeds=tuple(args.seeds),
        options=() if args.epochs is None else (f"train_cfg.max_epochs={args.epochs}",),
        finetune_iters=args.finetune_iters,
    )
    path = comparison.write_results(finished_steps(args.folder)) if args.report else comparison.run()
    print(f"\n{path.read_text()}\n{path}")


if __name__ == "__main__":
    run_tool(main)
