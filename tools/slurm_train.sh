#!/usr/bin/env bash
# Train under Slurm.
#   GPUS=16 GPUS_PER_NODE=8 CPUS_PER_TASK=8 SRUN_ARGS="..." tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of tools/train.py]
# Example:
#   GPUS=8 tools/slurm_train.sh gpu arm_b det_configs/mask_rcnn_arm_b.py --resume
exec bash "$(dirname "${BASH_SOURCE[0]}")/slurm_run.sh" train.py "$@"
