#!/usr/bin/env bash
# Evaluates on several GPUs of this machine, or in several CPU processes if it has no GPU.
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of tools/test.py]
# Example:
#   tools/dist_test.sh det_configs/mask_rcnn_arm_b.py work_dirs/mask_rcnn_arm_b/epoch_36.pth 8
exec bash "$(dirname "${BASH_SOURCE[0]}")/dist_run.sh" test.py "$@"
