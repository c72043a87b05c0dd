"""Convert a checkpoint into another kind and account for every tensor.

SOURCE is a pretraining model, backbone, classifier, detector or segmentor of this toolkit, or a pretraining or
finetuning file of the authors (of ARM, Vim or VMamba); its keys show which. If any tensor is unaccounted for, nothing
is written and the exit status is not 0. Only the base requirements are needed (torch, timm, numpy, safetensors).

Examples:
  a pretrained model, to start Mask R-CNN and UperNet from (one scan is copied to four):
    python tools/convert_checkpoint.py work_dirs/arm_b/epoch_1600.pth checkpoints/arm_b_pretrain.pth --to backbone
  the moving average of the authors' finetuned classifier:
    python tools/convert_checkpoint.py checkpoint-99.pth checkpoints/arm_b_in1k.pth --to classifier --ema
  a model pretrained here, for the authors' code:
    python tools/convert_checkpoint.py work_dirs/arm_b/epoch_1600.pth checkpoint-1599.pth --to official-pretrain
"""

import argparse

from arm_backbone.checkpoint.convert import TARGETS, arch_of, convert, detect_kind
from arm_backbone.checkpoint.files import model_state, naming, read_checkpoint, write_checkpoint
from arm_toolkit.errors import ConfigError, run_tool


def grid_of(size: list[int], patch: int, stride: int) -> tuple[int, int]:
    """Grid (Gh, Gw) in tokens of an image, without padding; `size` is [side] or [height, width] in pixels."""
    if len(size) > 2 or min(size) < patch:
        raise ConfigError(
            f"--img-size {' '.join(map(str, size))}: give one size, or height and width, of at least {patch} pixels"
        )
    height, width = (size * 2)[:2]
    return (height - patch) // stride + 1, (width - patch) // stride + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="checkpoint to read, .pth or .safetensors")
    parser.add_argument("target", help="file to write, .pth or .safetensors; an existing one is replaced")
    parser.add_argument("--to", choices=TARGETS, required=True, help="kind of the target")
    parser.add_argument(
        "--img-size",
        type=int,
        nargs="+",
        metavar="N",
        help="resize the position embedding for images of N pixels, or of height and width",
    )
    parser.add_argument("--patch-size", type=int, metavar="P", help="resample the patch embedding to P pixels")
    parser.add_argument(
        "--patch-stride", type=int, metavar="S", help="patch stride for --img-size in pixels (default: the patch size)"
    )
    parser.add_argument(
        "--cls-token",
        choices=("middle", "tail", "none"),
        default="middle",
        help="position of the class token in the authors' classifiers, which their files do not record (STAR: tail); "
        "none: the target has no class token",
    )
    parser.add_argument("--ema", action="store_true", help="convert the moving average of the weights")
    parser.add_argument("--trust", action="store_true", help="unpickle any object in SOURCE, which can execute code")
    args = parser.parse_args()

    state = model_state(read_checkpoint(args.source, args.trust), args.ema, args.source)
    if args.patch_stride and not args.img_size:
        raise ConfigError("--patch-stride needs --img-size, the image size in pixels")
    cls_token = None if args.cls_token == "none" else args.cls_token
    with naming(args.source):
        kind = detect_kind(state)
        grid = None
        if args.img_size:
            patch = args.patch_size or arch_of(state)["patch_size"]
            grid = grid_of(args.img_size, patch, args.patch_stride or patch)
        result, accounting = convert(state, args.to, grid, args.patch_size, cls_token)
    official = args.to.startswith("official")
    write_checkpoint(args.target, result, dict(kind=args.to, source=kind), key="model" if official else "state_dict")
    print(
        f"{args.source} ({kind}{', EMA' if args.ema else ''}, {len(state)} tensors) -> "
        f"{args.target} ({args.to}, {len(result)} tensors)\n{accounting}"
    )


if __name__ == "__main__":
    run_tool(main)
