"""Convert a checkpoint, with an account of every tensor.

Example, from pretraining to what Mask R-CNN and UperNet start from (one scan becomes four):
    python tools/convert_checkpoint.py work_dirs/arm_b/epoch_1600.pth checkpoints/arm_b_pretrain.pth --to backbone
"""

import argparse

from arm_backbone.checkpoint import detect_kind, model_state, read_checkpoint, to_backbone, write_checkpoint
from arm_backbone.pos_embed import resize_pos_embed
from arm_toolkit.errors import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a checkpoint of this toolkit: pretraining, detector, segmenter or backbone")
    parser.add_argument("target", help="file to write, .pth or .safetensors")
    parser.add_argument("--to", choices=["backbone"], required=True, help="what to make")
    parser.add_argument(
        "--img-size", type=int, nargs="+", metavar="N", help="resize the position embedding: one size, or height width"
    )
    parser.add_argument("--trust", action="store_true", help="unpickle anything in SOURCE; it can execute code")
    args = parser.parse_args()

    state = model_state(read_checkpoint(args.source, args.trust))
    kind = detect_kind(state)
    result, accounting = to_backbone(state)
    if args.img_size:
        patch = result["patch_embed.proj.weight"].shape[2:]
        height, width = (args.img_size * 2)[:2]
        grid = (height // patch[0], width // patch[1])
        result["pos_embed"] = resize_pos_embed(result["pos_embed"], *grid)
        accounting.used["pos_embed"] = f"resized to {grid[0]}x{grid[1]}"
    write_checkpoint(args.target, result, dict(kind="backbone", source=kind))
    print(
        f"{args.source} ({kind}, {len(state)} tensors) -> {args.target} (backbone, {len(result)} tensors)\n{accounting}"
    )


if __name__ == "__main__":
    run_tool(main)
