"""k-nearest-neighbour accuracy of an encoder's features: no training, nothing to tune.

CHECKPOINT is of any kind. Take a configuration with the right number of scans: cls_configs/arm_b_linear.py (one causal
scan) for AR-pretrained weights, cls_configs/arm_b_in1k.py (four) for finetuned ones.

Example:
    python tools/knn.py cls_configs/arm_b_linear.py work_dirs/arm_b/epoch_1600.pth --cfg-options data_root=PATH
"""

import argparse

import torch
from mmengine.registry import MODELS
from mmengine.runner import Runner

from arm_backbone.openmmlab import load_pretrained
from arm_toolkit.engine.checks import check_data_paths, config_errors
from arm_toolkit.engine.config import Options, load_config
from arm_toolkit.errors import ConfigError, run_tool
from arm_toolkit.evaluation.knn import extract_features, vote


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a classification configuration: model, validation data and their preprocessing")
    parser.add_argument("checkpoint", help="weights of the encoder, of any kind")
    parser.add_argument("--k", type=int, default=20, help="neighbours (20)")
    parser.add_argument("--temperature", type=float, default=0.07, help="of the vote's weights (0.07)")
    parser.add_argument("--cfg-options", nargs="+", action=Options, metavar="KEY=VALUE", help="override keys")
    args = parser.parse_args()
    if args.k < 1 or args.temperature <= 0:
        raise ConfigError(f"--k {args.k} --temperature {args.temperature}: both must be positive")

    cfg = load_config(args.config, args.cfg_options)
    if cfg.get("test_dataloader") is None or cfg.test_dataloader.dataset.type != "ClassFolder":
        raise ConfigError(f"{args.config} has no class folders; see cls_configs/")
    check_data_paths(cfg, ("test_dataloader",))
    cfg.model.update(init_cfg=None, with_cp=False)
    with config_errors(cfg, "model"):
        model = MODELS.build(cfg.model)
    load_pretrained(model, args.checkpoint)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    data = {}
    for split in (cfg.test_dataloader.dataset.get("classes_from", "train"), cfg.test_dataloader.dataset.split):
        cfg.test_dataloader.dataset.split = split
        loader = Runner.build_dataloader(cfg.test_dataloader)
        print(f"{split}: {len(loader.dataset)} images")
        data[split] = extract_features(model, loader, device)
        print()
    (train, train_labels), (queries, labels) = data.values()
    votes = vote(train, train_labels, queries, args.k, args.temperature)
    top1 = (votes.argmax(1) == labels).float().mean().item() * 100
    print(f"k-NN (k {args.k}, temperature {args.temperature}): top-1 {top1:.2f}")


if __name__ == "__main__":
    run_tool(main)
