"""Measure by k nearest neighbours how good an encoder's features are; nothing is trained or tuned.

With a configuration of cls_configs/: top-1 accuracy of images. Give one with the checkpoint's number of scans:
arm_b_linear.py (one causal scan) for AR-pretrained weights, arm_b_in1k.py (four scans) for finetuned weights.
With a configuration of seg_configs/: mIoU, where each patch gets the class of the patches nearest to it.

Examples:
    python tools/knn.py cls_configs/arm_b_linear.py work_dirs/arm_b/epoch_1600.pth --cfg-options data_root=PATH
    python tools/knn.py seg_configs/upernet_arm_ti_camvid.py checkpoints/arm_ti_pretrain.pth
"""

import argparse
import json
from pathlib import Path

from arm_toolkit.engine.arguments import ConfigFile, Options
from arm_toolkit.errors import ConfigError, run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "config", action=ConfigFile, help="configuration of cls_configs/ or seg_configs/: model, images, preprocessing"
    )
    parser.add_argument(
        "checkpoint", nargs="?", help="the encoder's weights, of any kind (default: random weights, as a baseline)"
    )
    parser.add_argument("--k", type=int, default=20, help="number of neighbours (20)")
    parser.add_argument("--temperature", type=float, default=0.07, help="temperature of the votes' weights (0.07)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to a file")
    parser.add_argument(
        "--cfg-options", nargs="+", action=Options, metavar="KEY=VALUE", help="override configuration keys"
    )
    args = parser.parse_args()
    if args.k < 1 or args.temperature <= 0:
        raise ConfigError(f"--k {args.k} --temperature {args.temperature}: both must be positive")

    # imported here: --help and wrong arguments need no torch
    import torch

    from arm_backbone.checkpoint.writing import replacing
    from arm_toolkit.analysis.neighbours import measure_images, measure_patches
    from arm_toolkit.engine.config import load_config
    from arm_toolkit.engine.environment import check_environment
    from arm_toolkit.machine import compute_faster

    check_environment()
    if not torch.cuda.is_available():
        compute_faster()
    cfg = load_config(args.config, args.cfg_options)
    torch.manual_seed(cfg.get("randomness", {}).get("seed") or 0)  # of random weights
    measure = measure_images if cfg.model.get("decode_head") is None else measure_patches
    result = measure(cfg, args.checkpoint, args.k, args.temperature)
    shown = ", ".join(f"{name} {value:.2f}" for name, value in result.items())
    print(f"k-NN (k {args.k}, temperature {args.temperature}): {shown}")
    if args.json is not None:
        with replacing(args.json) as partial:
            partial.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    run_tool(main)
