"""Give mutated inputs of one kind to the toolkit for some minutes and count what happens.

Examples:
    python -m tests.fuzz coco --minutes 20
    python -m tests.fuzz checkpoints --seed 1207 --cases 1    # one input again

Kinds: coco, images, checkpoints, command_lines, published. Everything runs in one process on one core. OUT/KIND.jsonl
records each case; a run continues after the last seed in it, also if that case killed the process.
"""

import argparse
import itertools
import json
import tempfile
from pathlib import Path

import torch

from arm_toolkit.datasets.shapes import write_shapes
from tests.fuzz.checkpoints import CheckpointCase
from tests.fuzz.coco import CocoCase
from tests.fuzz.command_lines import CommandLineCase
from tests.fuzz.images import ImageCase
from tests.fuzz.published import PublishedCase
from tests.fuzz.session import dead, run, seeds_after

KINDS = dict(coco=CocoCase, images=ImageCase, checkpoints=CheckpointCase, command_lines=CommandLineCase)
KINDS |= dict(published=PublishedCase)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--minutes", type=float, default=20, help="length of the run (20)")
    parser.add_argument("--cases", type=int, help="stop after this many inputs")
    parser.add_argument("--seed", type=int, help="first seed (the one after the last in the log)")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/fuzz"), help="folder of the logs (work_dirs/fuzz)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / f"{args.kind}.jsonl"
    seeds = seeds_after(log, 0) if args.seed is None else itertools.count(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        shapes = Path(folder, "data/shapes")
        write_shapes(shapes, train=16, val=6, size=96)
        place = Path(folder, "case")
        place.mkdir()
        counts = run(KINDS[args.kind](shapes, place), log, itertools.islice(seeds, args.cases), args.minutes * 60)
    print(", ".join(f"{outcome}: {count}" for outcome, count in counts.most_common()) or "no case")
    for line in map(json.loads, log.read_text().splitlines()):
        if line.get("outcome") in ("fault", "hang"):
            print(f"seed {line['seed']}: {line['outcome']}: {line['text'].strip().splitlines()[-1][:300]}")
    print(f"seeds that killed their process: {dead(log) or 'none'}")


if __name__ == "__main__":
    main()
