#!/usr/bin/env bash
# The complete workflow from a fresh clone, on a CPU or a GPU: installs the environment, generates a data set, pretrains
# on images without labels, converts, trains Mask R-CNN and UperNet on 20 labelled ones, evaluates and publishes them,
# predicts new images, and writes a report, work_dirs/quickstart/report.html. Takes about 5 minutes on 2 CPU cores once
# the environment is installed.
#   bash tools/quickstart.sh [--fresh]
set -euo pipefail
case " $* " in *" -h "* | *" --help "*) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;; esac
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$repo/tools/install.sh"
cd "$repo"
exec "${VIRTUAL_ENV:-$repo/.venv}/bin/python" -m arm_toolkit.experiments.quickstart "$@"
