#!/usr/bin/env bash
# Trains under Slurm.
#   GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 SRUN_ARGS="" \
#       tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of tools/train.py]
# The variables are optional; these are their defaults.
# Example:
#   GPUS=16 tools/slurm_train.sh gpu arm_b det_configs/mask_rcnn_arm_b.py --resume
exec bash "$(dirname "${BASH_SOURCE[0]}")/slurm_run.sh" train.py "$@"
