"""Compare ways of pretraining by what models learn from them. A second run skips the finished steps.

With --generated: the quickstart with and without pretraining, three seeds, about 25 minutes on two CPU cores.

Otherwise, on photographs: with --study variants ARM, STAR, random order, patch units, raw pixels and none; with --study
paradigms ARM, MAE, MoCo v3 and none, and a Vim. The measure is semantic segmentation of a held-out drive, which is
excluded from all training. This takes hours on a CPU.

Examples:
    python tools/compare_pretraining.py --generated
  with a list of photographs and CamVid in ADE's layout (images/training, annotations/training, meta.json):
    python tools/compare_pretraining.py --photographs data/photos.txt --prefix data --camvid data/camvid \\
        --held-out 0006R0 --study paradigms --seeds 0 1 2 --epochs 10
  the table of the steps finished so far, from another terminal:
    python tools/compare_pretraining.py --generated --report
"""

import argparse
from pathlib import Path

from arm_toolkit.engine.quiet import quiet_imports
from arm_toolkit.errors import ConfigError, run_tool
from arm_toolkit.experiments.studies import STUDIES

PHOTOGRAPHS = ("photographs", "prefix", "camvid", "held_out")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generated", action="store_true", help="compare on generated images, with few labels")
    photographs = parser.add_argument_group("on photographs")
    photographs.add_argument("--photographs", type=Path, help="text file with one path per line")
    photographs.add_argument("--prefix", type=Path, help="folder that these paths are relative to")
    photographs.add_argument("--camvid", type=Path, help="segmentation data in ADE's layout")
    photographs.add_argument("--held-out", help="prefix of the held-out drive's frame names")
    photographs.add_argument("--study", choices=tuple(STUDIES), help="what is compared (variants)")
    photographs.add_argument("--epochs", type=int, help="epochs of every pretraining (default: the configuration's)")
    photographs.add_argument("--finetune-iters", type=int, help="iterations of every finetuning and probe (250)")
    parser.add_argument(
        "--folder", type=Path, help="folder for the results (work_dirs/comparison/, and in it generated or the study)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds (0 1, with --generated 0 1 2)")
    parser.add_argument("--report", action="store_true", help="run nothing; write the table of the finished steps")
    args = parser.parse_args()
    path = compare_generated(args) if args.generated else compare_on_photographs(args)
    print(f"\n{path.read_text()}\n{path}")


def compare_generated(args: argparse.Namespace) -> Path:
    for name in (*PHOTOGRAPHS, "study", "epochs", "finetune_iters"):
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')}: not with --generated; leave it out")
    with quiet_imports():  # here: --help and wrong arguments need no torch
        from arm_toolkit.experiments.generated_comparison import GeneratedComparison

    folder = args.folder or Path("work_dirs/comparison/generated")
    comparison = GeneratedComparison(folder, tuple(args.seeds or (0, 1, 2)))
    return comparison.write_results() if args.report else comparison.run()


def compare_on_photographs(args: argparse.Namespace) -> Path:
    missing = [f"--{name.replace('_', '-')}" for name in PHOTOGRAPHS if getattr(args, name) is None]
    if missing:
        raise ConfigError(f"{', '.join(missing)}: needed to compare on photographs; or give --generated alone")
    with quiet_imports():
        from arm_toolkit.experiments.comparison import Comparison
        from arm_toolkit.experiments.steps import finished_steps

    study = args.study or "variants"
    comparison = Comparison(
        study=STUDIES[study],
        folder=args.folder or Path("work_dirs/comparison", study),
        photographs=args.photographs,
        prefix=args.prefix,
        camvid=args.camvid,
        held_out=args.held_out,
        seeds=tuple(args.seeds or (0, 1)),
        options=() if args.epochs is None else (f"train_cfg.max_epochs={args.epochs}",),
        finetune_iters=250 if args.finetune_iters is None else args.finetune_iters,
    )
    return comparison.write_results(finished_steps(comparison.folder)) if args.report else comparison.run()


if __name__ == "__main__":
    run_tool(main)
