#!/usr/bin/env bash
# Train on several devices: GPUs, or CPU processes where there is none.
#   tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
# Example, eight GPUs of one machine:
#   tools/dist_train.sh det_configs/mask_rcnn_arm_b.py 8
# Several machines: run it on each with NNODES, NODE_RANK and MASTER_ADDR (and PORT) set.
exec bash "$(dirname "${BASH_SOURCE[0]}")/dist_run.sh" train.py "$@"
