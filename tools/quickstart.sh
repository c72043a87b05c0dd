#!/usr/bin/env bash
# From a fresh clone, alone: makes the environment, then takes the whole path on a generated data set, on a CPU or a GPU:
# AR pretraining, conversion, Mask R-CNN and UperNet from the pretrained weights and from scratch, evaluation, and a report with
# pictures in work_dirs/quickstart/report.html. On 2 CPU cores 10 minutes after the environment.
#   bash tools/quickstart.sh [--fresh]
set -euo pipefail
case " $* " in *" -h "* | *" --help "*) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;; esac
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$repo/tools/install.sh"
cd "$repo"
exec "${VIRTUAL_ENV:-$repo/.venv}/bin/python" -m arm_toolkit.experiments.quickstart "$@"
