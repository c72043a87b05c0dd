"""Export a trained model, or its backbone, as ONNX or as a program of torch.export, and compare the file with it.

FILE.onnx runs in onnxruntime and other runtimes, FILE.pt2 in PyTorch; neither needs this toolkit. By default they take
any number of images of any size. Classifiers and segmentors are exported whole, detectors up to their pyramid. What the
images must be (normalization, order of channels, size) and the names of the classes are in the file.

Examples:
  a segmentor, as its training wrote it, compared on images:
    python tools/export.py work_dirs/mine/iter_400.pth mine.onnx --images IMAGES
  a classifier in timm's registry, with weights, for images of one size:
    python tools/export.py arm_base_patch16_224 arm.onnx --checkpoint checkpoints/arm_b_in1k.pth --img-size 224
  a detector's backbone and pyramid, as a program that runs our kernels:
    python tools/export.py det_configs/mask_rcnn_arm_b.py arm.pt2 --checkpoint epoch_36.pth --ops arm
"""

import argparse

from arm_toolkit.errors import ConfigError, run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model",
        help="a published folder, hf://OWNER/NAME, a checkpoint of a training (.pth), a configuration (.py), or a name "
        "in timm's registry",
    )
    parser.add_argument("file", help="file to write, .onnx or .pt2; an existing one is replaced")
    parser.add_argument("--checkpoint", metavar="FILE", help="the weights, for a configuration or a name of timm")
    parser.add_argument(
        "--part",
        choices=("model", "pyramid", "backbone"),
        help="model: classifier or segmentor whole; pyramid: backbone and neck (default: all that can be exported)",
    )
    parser.add_argument(
        "--ops",
        choices=("standard", "ort", "arm"),
        default="standard",
        help="the scan. standard: ONNX's or PyTorch's own operators (default); ort: LinearAttention of onnxruntime "
        "1.25.1 or later (.onnx); arm: our kernels, for programs that `import arm_backbone` (.pt2)",
    )
    parser.add_argument(
        "--img-size",
        type=int,
        nargs="+",
        metavar="N",
        help="take images of this size only, in pixels: side, or height and width (default: any size)",
    )
    parser.add_argument(
        "--pixels", action="store_true", help="take RGB pixels (uint8, 0 to 255) and normalize them in the file"
    )
    parser.add_argument(
        "--images",
        nargs="+",
        default=(),
        metavar="IMAGE",
        help="images or folders to compare on (default: the configuration's test images, else noise)",
    )
    args = parser.parse_args()
    size = args.img_size
    if size and (len(size) > 2 or min(size) < 1):
        raise ConfigError(f"--img-size {' '.join(map(str, size))}: give one side, or height and width")
    endings = {".onnx": ("standard", "ort"), ".pt2": ("standard", "arm")}
    ending = next((ending for ending in endings if args.file.endswith(ending)), None)
    if ending is None:
        raise ConfigError(f"{args.file}: its ending says the format; give FILE.onnx or FILE.pt2")
    if args.ops not in endings[ending]:
        raise ConfigError(f"--ops {args.ops}: a {ending} file takes {' or '.join(endings[ending])}")

    # imported here: --help and wrong arguments need no torch
    from arm_toolkit.inference.export import export

    export(
        args.model,
        args.file,
        args.checkpoint,
        part=args.part,
        ops=args.ops,
        size=tuple((size * 2)[:2]) if size else None,
        pixels=args.pixels,
        images=args.images,
    )


if __name__ == "__main__":
    run_tool(main)
