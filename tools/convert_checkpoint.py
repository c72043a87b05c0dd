"""Convert a checkpoint of any kind into another, with an account of every tensor.

What SOURCE is, its keys say: pretraining, backbone, classifier, detector or segmenter of this toolkit, or a pretraining
or finetuning file of the authors. The exit status is not 0 if a tensor stays unaccounted for.

Examples:
  from pretraining to what Mask R-CNN and UperNet start from (one scan becomes four):
    python tools/convert_checkpoint.py work_dirs/arm_b/epoch_1600.pth checkpoints/arm_b_pretrain.pth --to backbone
  the authors' finetuned classifier, its moving average:
    python tools/convert_checkpoint.py checkpoint-99.pth checkpoints/arm_b_in1k.pth --to classifier --ema
  a model trained here, for the authors' code:
    python tools/convert_checkpoint.py work_dirs/arm_b/epoch_1600.pth checkpoint-1599.pth --to official-pretrain
"""

import argparse

from arm_backbone.checkpoint.convert import TARGETS, convert, detect_kind
from arm_backbone.checkpoint.files import CheckpointError, model_state, read_checkpoint, write_checkpoint
from arm_toolkit.errors import ConfigError, run_tool


def grid_of(size: list[int], patch: int, stride: int) -> tuple[int, int]:
    """Tokens (height, width) of an image; the reference code's grid, without padding."""
    if len(size) > 2 or min(size) < patch:
        raise ConfigError(
            f"--img-size {' '.join(map(str, size))}: give one size, or height and width, of at least {patch}"
        )
    height, width = (size * 2)[:2]
    return (height - patch) // stride + 1, (width - patch) // stride + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="checkpoint to read, .pth or .safetensors")
    parser.add_argument("target", help="file to write, .pth or .safetensors")
    parser.add_argument("--to", choices=TARGETS, required=True, help="what to make")
    parser.add_argument(
        "--img-size", type=int, nargs="+", metavar="N", help="resize the position embedding: one size, or height width"
    )
    parser.add_argument("--patch-size", type=int, metavar="P", help="resample the patch embedding to P pixels")
    parser.add_argument(
        "--patch-stride", type=int, metavar="S", help="stride that --img-size counts with (the patch size)"
    )
    parser.add_argument(
        "--cls-token",
        choices=("middle", "tail", "none"),
        default="middle",
        help="place of the class token in the authors' classifiers (a file does not say it; STAR's is at the tail); "
        "none: make the target without one",
    )
    parser.add_argument("--ema", action="store_true", help="take the moving average of the weights")
    parser.add_argument("--trust", action="store_true", help="unpickle anything in SOURCE; it can execute code")
    args = parser.parse_args()

    state = model_state(read_checkpoint(args.source, args.trust), args.ema)
    kind = detect_kind(state)
    grid = None
    if args.img_size:
        kernel = next(tensor for name, tensor in state.items() if name.endswith("patch_embed.proj.weight"))
        patch = args.patch_size or kernel.shape[-1]
        grid = grid_of(args.img_size, patch, args.patch_stride or patch)
    elif args.patch_stride:
        raise ConfigError("--patch-stride: say with --img-size for which images")
    try:
        result, accounting = convert(
            state, args.to, grid, args.patch_size, None if args.cls_token == "none" else args.cls_token
        )
    except CheckpointError as error:
        raise CheckpointError(f"{args.source}: {error}") from None
    official = args.to.startswith("official")
    write_checkpoint(args.target, result, dict(kind=args.to, source=kind), key="model" if official else "state_dict")
    print(
        f"{args.source} ({kind}{', EMA' if args.ema else ''}, {len(state)} tensors) -> "
        f"{args.target} ({args.to}, {len(result)} tensors)\n{accounting}"
    )


if __name__ == "__main__":
    run_tool(main)
