"""Measure the k-nearest-neighbour accuracy of an encoder's features; nothing is trained or tuned.

The checkpoint can be of any kind. Give a configuration with the checkpoint's number of scans:
cls_configs/arm_b_linear.py (one causal scan) for AR-pretrained weights, cls_configs/arm_b_in1k.py (four scans) for
finetuned weights.

Example:
    python tools/knn.py cls_configs/arm_b_linear.py work_dirs/arm_b/epoch_1600.pth --cfg-options data_root=PATH
"""

import argparse

from arm_toolkit.engine.arguments import ConfigFile, Options
from arm_toolkit.errors import ConfigError, run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "config",
        action=ConfigFile,
        help="classification configuration: model, training and validation images, preprocessing",
    )
    parser.add_argument("checkpoint", help="the encoder's weights, of any kind")
    parser.add_argument("--k", type=int, default=20, help="number of neighbours (20)")
    parser.add_argument("--temperature", type=float, default=0.07, help="temperature of the votes' weights (0.07)")
    parser.add_argument(
        "--cfg-options", nargs="+", action=Options, metavar="KEY=VALUE", help="override configuration keys"
    )
    args = parser.parse_args()
    if args.k < 1 or args.temperature <= 0:
        raise ConfigError(f"--k {args.k} --temperature {args.temperature}: both must be positive")

    # imported here: --help and wrong arguments need no torch
    import torch
    from mmengine.registry import MODELS

    from arm_backbone.openmmlab import load_pretrained
    from arm_toolkit.engine.checks import check_data_paths, config_errors
    from arm_toolkit.engine.config import load_config
    from arm_toolkit.engine.environment import check_environment
    from arm_toolkit.evaluation.knn import knn_accuracy

    check_environment()
    cfg = load_config(args.config, args.cfg_options)
    if cfg.get("test_dataloader") is None or cfg.test_dataloader.dataset.type != "ClassFolder":
        raise ConfigError(f"{args.config} has no ClassFolder as test data; give a configuration of cls_configs/")
    check_data_paths(cfg, ("test_dataloader",))
    cfg.model.update(init_cfg=None, with_cp=False)
    with config_errors(cfg, "model"):
        model = MODELS.build(cfg.model)
    load_pretrained(model, args.checkpoint)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    top1 = knn_accuracy(model, cfg.test_dataloader, args.k, args.temperature)
    print(f"k-NN (k {args.k}, temperature {args.temperature}): top-1 {top1:.2f}")


if __name__ == "__main__":
    run_tool(main)
