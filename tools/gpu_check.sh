#!/usr/bin/env bash
# Checks this toolkit on a machine with a GPU, within 7 minutes and in the order of value:
# * Mask R-CNN and UperNet with ARM-B train at real sizes, in bfloat16, and tools/test.py evaluates them;
# * ARM-B pretrains, and one process of torchrun (NCCL) resumes it; ARM-B finetunes at 224 x 224, and is tested;
# * kernels, mixer and block equal their plain operators, and two runs are bit-equal;
# * ARM-B beside DeiT-B, the scan and the block: images per second and peak memory; the same with CUDA graphs.
# All images are generated, and losses must fall. Needs no network, installs nothing, and uses whatever versions are
# there: of a check whose imports are missing it names them, and goes on with the next. Every result is written at once
# as a line of JSON; the exit status is 0 if all checks passed.
#   bash tools/gpu_check.sh [--cpu] [--out FOLDER]
# Runs with the active virtual environment, otherwise with .venv of this repository, otherwise with python3 (or the
# program that the variable PYTHON names). On a bare machine put pure Python packages on PYTHONPATH.
set -euo pipefail
case " $* " in *" -h "* | *" --help "*) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;; esac
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python="${PYTHON:-python3}"
for candidate in "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" "$repo/.venv/bin/python"; do
  if [ -n "$candidate" ] && [ -x "$candidate" ]; then
    python="$candidate"
    break
  fi
done
export PYTHONPATH="$repo${PYTHONPATH:+:$PYTHONPATH}" # this project may not be installed
exec "$python" -m arm_toolkit.experiments.gpu_check "$@"
