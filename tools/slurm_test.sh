#!/usr/bin/env bash
# Evaluates under Slurm.
#   GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 SRUN_ARGS="" \
#       tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of tools/test.py]
# The variables are optional; these are their defaults.
# Example:
#   GPUS=8 tools/slurm_test.sh gpu arm_b det_configs/mask_rcnn_arm_b.py work_dirs/mask_rcnn_arm_b/epoch_36.pth
exec bash "$(dirname "${BASH_SOURCE[0]}")/slurm_run.sh" test.py "$@"
