#!/usr/bin/env bash
# Trains on several GPUs of this machine, or in several CPU processes if it has no GPU.
#   tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
# Example, eight GPUs:
#   tools/dist_train.sh det_configs/mask_rcnn_arm_b.py 8
# On several machines, run it on each one with NNODES, NODE_RANK and MASTER_ADDR (and PORT, 29500 by default):
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=host0 tools/dist_train.sh det_configs/mask_rcnn_arm_b.py 8
exec bash "$(dirname "${BASH_SOURCE[0]}")/dist_run.sh" train.py "$@"
