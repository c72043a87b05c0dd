#!/usr/bin/env bash
# Starts a tool in several processes on this machine; called by dist_train.sh and dist_test.sh.
#   dist_run.sh TOOL CONFIG [CHECKPOINT] PROCESSES [arguments of TOOL]
set -euo pipefail
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tool=$1
shift
inputs_count=$([ "$tool" = test.py ] && echo 2 || echo 1)
usage() { sed -n '2,/^exec/{/^exec/d;s/^# \{0,1\}//;p}' "$tools/dist_${tool%.py}.sh"; }
case " $* " in *" --help "* | *" -h "*) usage && exit ;; esac
if [ $# -le "$inputs_count" ]; then
    usage
    exit 2
fi
inputs=("${@:1:inputs_count}")
shift "$inputs_count"
processes=$1
shift
if ! [[ $processes =~ ^[1-9][0-9]*$ ]]; then
    echo "error: the number of GPUs (without a GPU, of CPU processes) must be 1 or more, not '$processes'" >&2
    exit 2
fi

python=${PYTHON:-python}
if [ -z "${PYTHON:-}${VIRTUAL_ENV:-}" ] && [ -x "$tools/../.venv/bin/python" ]; then
    python=$tools/../.venv/bin/python # created by tools/install.sh
fi
gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
if [ "$gpus" -eq 0 ]; then
    echo "No GPU found: starting $processes CPU processes that communicate over gloo."
    cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc) # nproc would report these instead of the cores
    [ "$processes" -le "$cores" ] || echo "warning: $processes processes on $cores cores will slow each other down" >&2
    # divide the cores among the processes
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores / processes > 0 ? cores / processes : 1))}
elif [ "$processes" -gt "$gpus" ]; then
    echo "error: $processes GPUs requested, but this machine has $gpus; give at most $gpus" >&2
    exit 2
fi

nodes=${NNODES:-1}
if [ "$nodes" -gt 1 ]; then
    : "${MASTER_ADDR:?several machines need MASTER_ADDR, the address of the first one}"
    rendezvous=(--nnodes="$nodes" --node_rank="${NODE_RANK:?several machines need NODE_RANK, 0 on the first one}"
        --master_addr="$MASTER_ADDR" --master_port="${PORT:-29500}")
elif [ -n "${PORT:-}" ]; then
    rendezvous=(--nnodes=1 --master_addr=127.0.0.1 --master_port="$PORT")
else
    rendezvous=(--standalone) # picks a free port
fi
exec "$python" -m torch.distributed.run "${rendezvous[@]}" --nproc_per_node="$processes" \
    "$tools/$tool" "${inputs[@]}" --launcher pytorch "$@"
