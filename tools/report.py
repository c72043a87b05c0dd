"""Write a page about runs: curves, metrics by class, confusion matrix, best and worst images, runs side by side.

The page is one HTML file that needs no other. What it shows and how that is computed: docs/report.md.

Examples, with predictions that tools/test.py has saved in the work dirs:
    python tools/test.py seg_configs/upernet_arm_ti_camvid.py work_dirs/camvid/iter_400.pth \\
        --work-dir work_dirs/camvid/test --out work_dirs/camvid/predictions
    python tools/report.py work_dirs/camvid
    python tools/report.py work_dirs/camvid work_dirs/camvid_scratch --out comparison.html
"""

import argparse
from pathlib import Path

from arm_toolkit.errors import ConfigError, run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work_dirs", nargs="+", type=Path, metavar="WORK_DIR", help="work dir of a run of any task")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.html",
        help="the page to write (one work dir: its report.html; several: needed)",
    )
    args = parser.parse_args()
    if args.out is None and len(args.work_dirs) > 1:
        raise ConfigError(f"{len(args.work_dirs)} work dirs: give the page's name with --out FILE.html")
    out = args.out or args.work_dirs[0] / "report.html"
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {out}: the page is HTML; give a name ending in .html")

    # imported here: --help and wrong arguments need no torch
    from arm_toolkit.engine.quiet import quiet_imports

    with quiet_imports():
        from arm_toolkit.experiments.run_report import write_report

    for problem in write_report(args.work_dirs, out):
        print(problem)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB (open it in a browser)")


if __name__ == "__main__":
    run_tool(main)
