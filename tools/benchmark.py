"""Measure speed and memory of several candidates in one run: interleaved repetitions, medians, ratios to the first one.

Examples:
  the scan with all back ends and with alternatives (below):
    python tools/benchmark.py scan --grid 14x14 32x32 64x64 --scans 1 --backward --json scan.json
  how the time of the scan grows with the number of tokens:
    python tools/benchmark.py scan --grid 32x32 32x64 64x64 64x128 128x128 --only cpu torch --plot scan.png
  an ARM-B or Vim-B block, compared with its matrix products alone (14x14+1: with a class token):
    python tools/benchmark.py block --grid 14x14+1 64x64 --backward
    python tools/benchmark.py block --grid 14x14+1 --dtype bfloat16 --backends auto torch
    python tools/benchmark.py block --encoder Vim --grid 14x14+1
  classifiers of this project and of timm:
    python tools/benchmark.py model arm_base_patch16_224 deit_base_patch16_224 regnety_160 --img-size 224 512 --batch 16
  a pretraining step, and the data loader:
    python tools/benchmark.py pretrain pretrain/configs/arm_b.py --batch 16 --data data/imagenet/train
  several paradigms, per image; a classifier's configuration is training with labels only:
    python tools/benchmark.py pretrain pretrain/configs/arm_b.py pretrain/configs/mae/mae_arm_b_300e.py \
        pretrain/configs/moco/moco_arm_b_300e.py cls_configs/mambamlp_b_in1k.py --batch 4
  backbone and neck of a detector or segmentor:
    python tools/benchmark.py dense det_configs/mask_rcnn_arm_b.py --img-size 800x1280
  where the time of a training step, or with --test of a test image, goes on a CPU, with the configuration's data:
    python tools/benchmark.py profile det_configs/mask_rcnn_arm_ti_cpu.py --cfg-options data_root=data/coco/
  files that tools/export.py wrote, compared with their model:
    python tools/benchmark.py exported arm_base_patch16_224 arm_b.onnx arm_b.pt2 --threads 1

Besides our back ends (reference, torch, ...), `scan` times:
  tokens last our fastest back end, once for each direction, in mamba-ssm's layout (B, D, L)
  loop        the Python loop of mamba-ssm's selective_scan_ref, once for each direction
  unbind      a loop over all directions at once, whose backward takes linear time
  chunked     chunks of 64 tokens by cumulative sums, which overflow for large steps
  pscan       the parallel scan of mambapy (pip install --no-deps mambapy)
  onnxruntime its LinearAttention, with the decays by PyTorch (CPU, float32, forward only)
  ggml        its ssm_scan (pip install libggml-python; CPU, float32, forward only)
  four calls  mamba-ssm's kernel, once for each direction (GPU only)
  exp         exponentials alone, compared per exponential (CPU only): torch.exp in the L2 cache, and the kernels' own
              in registers ("bare exp")
A candidate is timed if its result is that of the first one.

`model` and `pretrain` also count, per image, the matrix products and convolutions (GFLOP), and the steps of the
scans (states that are updated in the forward), each with its ratio to the first candidate's.

On a GPU, `scan` and `block` also time their main candidates as CUDA graphs ("graph"), which show the kernels alone.
Without a graph, small batches wait for the CPU to launch the kernels.
"""

import argparse
import json
import re
from collections.abc import Iterator

import torch

from arm_backbone import ARCHS
from arm_backbone.arm import TRUNKS
from arm_backbone.checkpoint.writing import check_writable, replacing
from arm_backbone.ops import BACKENDS
from arm_toolkit.benchmark.block_cases import block_cases
from arm_toolkit.benchmark.case import Case, Grid, Setting
from arm_toolkit.benchmark.conditions import busy_warning, conditions
from arm_toolkit.benchmark.exported_cases import exported_cases
from arm_toolkit.benchmark.model_cases import dense_cases, model_cases
from arm_toolkit.benchmark.pretrain_cases import pretrain_cases
from arm_toolkit.benchmark.results import exponents, plot
from arm_toolkit.benchmark.scan_cases import SCANS, scan_cases
from arm_toolkit.benchmark.step_profile import profile_steps, profile_table
from arm_toolkit.benchmark.timing import run_cases
from arm_toolkit.engine.arguments import Options
from arm_toolkit.engine.environment import check_environment
from arm_toolkit.errors import ConfigError, run_tool
from arm_toolkit.machine import compute_faster


def positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: give a positive number")
    return int(text)


def grid(text: str) -> Grid:
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)(\+1)?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: give HxW, or HxW+1 with a class token")
    return Grid(int(found[1]), int(found[2]), bool(found[3]))


def image_size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: give pixels, one number or HxW")
    return int(found[1]), int(found[2] or found[1])


def parse() -> argparse.Namespace:
    everywhere = argparse.ArgumentParser(add_help=False)
    everywhere.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="float32 (default), or bfloat16 by autocast"
    )
    everywhere.add_argument("--threads", type=positive, metavar="N", help="CPU threads (PyTorch's default)")
    everywhere.add_argument(
        "--json", metavar="FILE", help="write the measurements and facts about the machine to a file"
    )
    common = argparse.ArgumentParser(add_help=False, parents=[everywhere])
    common.add_argument("--batch", type=positive, metavar="N", default=1, help="images per batch (1)")
    common.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if a GPU is available")
    common.add_argument(
        "--seconds", type=float, metavar="S", default=10, help="seconds per table, for at least 3 repetitions (10)"
    )
    common.add_argument(
        "--repeats", type=positive, metavar="N", default=200, help="maximum number of repetitions (200)"
    )
    common.add_argument("--plot", metavar="FILE.png", help="plot the measurements")
    backends = argparse.ArgumentParser(add_help=False)
    choices = ("auto", *BACKENDS)
    backends.add_argument(
        "--backends", nargs="+", default=["auto"], choices=choices, help="scan back ends (auto: the fastest)"
    )
    tokens = argparse.ArgumentParser(add_help=False)
    tokens.add_argument(
        "--grid",
        type=grid,
        nargs="+",
        metavar="HxW",
        default=[Grid(14, 14)],
        help="grids of tokens; HxW+1 adds a class token (14x14)",
    )
    tokens.add_argument("--backward", action="store_true", help="also time forward and backward together")
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--cfg-options", nargs="+", action=Options, default={}, metavar="KEY=VALUE", help="override configuration keys"
    )

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tools = parser.add_subparsers(
        dest="what", required=True, metavar="{scan,block,model,pretrain,dense,profile,exported}"
    )
    scan = tools.add_parser("scan", parents=[tokens, common], help="the selective scan alone")
    scan.add_argument("--scans", type=int, choices=(1, 2, 4), default=4, help="scan directions (4)")
    scan.add_argument("--channels", type=positive, metavar="N", default=768, help="channels (768, as in ARM-B)")
    scan.add_argument("--only", nargs="+", choices=SCANS, metavar="NAME", help=f"time only these: {', '.join(SCANS)}")
    block = tools.add_parser(
        "block", parents=[tokens, backends, common], help="a block, compared with its matrix products"
    )
    block.add_argument("--arch", choices=ARCHS, default="base", help="architecture (base)")
    block.add_argument("--encoder", choices=TRUNKS, default="ARM", help="whose block (ARM)")
    model = tools.add_parser("model", parents=[common], help="classifiers by timm name")
    model.add_argument("names", nargs="+", metavar="NAME", help="name in timm's registry")
    sizes = dict(type=image_size, nargs="+", metavar="N", help="image sizes in pixels, each one number or HxW")
    model.add_argument("--img-size", default=[None], **sizes)
    model.add_argument(
        "--compile", metavar="MODE", help="also with blocks compiled by torch.compile, e.g. reduce-overhead"
    )
    pretrain = tools.add_parser(
        "pretrain", parents=[options, backends, common], help="configurations of pretraining, or of classifiers"
    )
    pretrain.add_argument("configs", nargs="+", metavar="CONFIG", help="configuration file")
    pretrain.add_argument("--data", metavar="PATH", help="folder or list of images; also time the data loader")
    dense = tools.add_parser("dense", parents=[options, backends, common], help="backbone and neck of a configuration")
    dense.add_argument("config", metavar="CONFIG", help="configuration file")
    dense.add_argument("--img-size", default=[(512, 512)], **sizes)
    profile = tools.add_parser("profile", parents=[options, everywhere], help="where the time of a step goes on a CPU")
    profile.add_argument("config", metavar="CONFIG", help="configuration file")
    profile.add_argument("--batch", type=positive, metavar="N", help="images per step (the configuration's)")
    profile.add_argument("--steps", type=positive, metavar="N", default=4, help="steps that are measured (4)")
    profile.add_argument("--test", action="store_true", help="test images instead of training")
    profile.set_defaults(device="cpu", plot=None)
    exported = tools.add_parser("exported", parents=[common], help="exported files, compared with their model")
    exported.add_argument("model", metavar="MODEL", help="as in tools/export.py")
    exported.add_argument("files", nargs="+", metavar="FILE", help=".onnx and .pt2 files")
    exported.add_argument("--checkpoint", metavar="FILE", help="the weights, for a configuration or a name of timm")
    exported.add_argument("--part", choices=("model", "pyramid", "backbone"), help="as in tools/export.py")
    exported.add_argument("--img-size", default=[None], **sizes)
    return parser.parse_args()


def cases(args: argparse.Namespace, setting: Setting) -> Iterator[Case]:
    if args.what == "scan":
        return scan_cases(setting, args.grid, args.scans, args.channels, args.backward, args.only)
    if args.what == "block":
        return block_cases(setting, args.grid, args.arch, args.backward, args.backends, args.encoder)
    if args.what == "model":
        return model_cases(setting, args.names, args.img_size, args.compile)
    if args.what == "pretrain":
        return pretrain_cases(setting, args.configs, args.cfg_options, args.backends, args.data)
    if args.what == "exported":
        return exported_cases(setting, args.model, args.files, args.checkpoint, args.part, args.img_size)
    return dense_cases(setting, args.config, args.cfg_options, args.img_size, args.backends)


def main() -> None:
    args = parse()
    for file in filter(None, (args.json, args.plot)):
        check_writable(file)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch finds no GPU; use --device cpu")
    check_environment()
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if args.threads:
        torch.set_num_threads(args.threads)
    about = conditions(device)
    about |= compute_faster() if device.type == "cpu" else {}  # as in training
    print("\n".join(f"{key.replace('_', ' ')}: {value}" for key, value in about.items() if value is not None))
    warning = busy_warning(about)
    if warning:
        print(f"warning: {warning}")
    if args.what == "profile":
        setting = Setting(device, getattr(torch, args.dtype))
        title, rows = profile_steps(setting, args.config, args.cfg_options, args.batch, args.steps, args.test)
        print(f"\n{title}\n\n{profile_table(rows)}")
        fitted = []
    else:
        setting = Setting(device, getattr(torch, args.dtype), args.batch)
        rows = run_cases(cases(args, setting), device, args.seconds, args.repeats, show=print)
        fitted = [dict(kind=k, candidate=c, exponent=p) for (k, c), p in exponents(rows).items()]
    if args.json:
        arguments = {key: value for key, value in vars(args).items() if key not in ("json", "plot")}
        result = dict(arguments=arguments, machine=about, warning=warning, rows=rows, exponents=fitted)
        with replacing(args.json) as partial:
            partial.write_text(json.dumps(result, indent=1, default=str) + "\n")
    if args.plot and rows:
        plot(rows, about, args.plot)


if __name__ == "__main__":
    run_tool(main)
