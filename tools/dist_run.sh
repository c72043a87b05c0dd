#!/usr/bin/env bash
# Start N processes of a tool; called by dist_train.sh and dist_test.sh.
#   dist_run.sh TOOL CONFIG [CHECKPOINT] N [arguments]
set -euo pipefail
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tool=$1
shift
positional=$([ "$tool" = test.py ] && echo 2 || echo 1)
case " $* " in *" --help "* | *" -h "*) set -- ;; esac
if [ $# -le "$positional" ]; then
    sed -n '2,/^exec/{/^exec/d;s/^# \{0,1\}//;p}' "$tools/dist_${tool%.py}.sh"
    exit 2
fi
inputs=("${@:1:positional}")
shift "$positional"
processes=$1
shift
if ! [[ $processes =~ ^[1-9][0-9]*$ ]]; then
    echo "error: the number of GPUs (CPU processes where there is none) must be 1 or more, not '$processes'" >&2
    exit 2
fi

python=${PYTHON:-python}
if [ -z "${PYTHON:-}${VIRTUAL_ENV:-}" ] && [ -x "$tools/../.venv/bin/python" ]; then
    python=$tools/../.venv/bin/python # what tools/install.sh made
fi
gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
if [ "$gpus" -eq 0 ]; then
    echo "No GPU found: starting $processes CPU processes that talk over gloo."
    cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc) # it would take those for the cores
    [ "$processes" -le "$cores" ] || echo "warning: $processes processes on $cores cores will slow each other down" >&2
    # each process takes its share of the cores
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores / processes > 0 ? cores / processes : 1))}
elif [ "$processes" -gt "$gpus" ]; then
    echo "error: $processes GPUs asked for, this machine has $gpus; give a number up to $gpus" >&2
    exit 2
fi

nodes=${NNODES:-1}
if [ "$nodes" -gt 1 ]; then
    : "${MASTER_ADDR:?several machines need MASTER_ADDR, the address of the first}"
    rendezvous=(--nnodes="$nodes" --node_rank="${NODE_RANK:?several machines need NODE_RANK, 0 on the first}"
        --master_addr="$MASTER_ADDR" --master_port="${PORT:-29500}")
elif [ -n "${PORT:-}" ]; then
    rendezvous=(--nnodes=1 --master_addr=127.0.0.1 --master_port="$PORT")
else
    rendezvous=(--standalone) # picks a free port
fi
exec "$python" -m torch.distributed.run "${rendezvous[@]}" --nproc_per_node="$processes" \
    "$tools/$tool" "${inputs[@]}" --launcher pytorch "$@"
