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

trap 'printf "\ninterrupted\n" >&2; exit 130' INT # until the processes start, which end with a line of their own

python=${PYTHON:-python}
if [ -z "${PYTHON:-}${VIRTUAL_ENV:-}" ] && [ -x "$tools/../.venv/bin/python" ]; then
    python=$tools/../.venv/bin/python # created by tools/install.sh
fi

number() { # VARIABLE FROM TO: stops unless its value is such a number, empty or unset
    local value=${!1:-}
    if [ -n "$value" ] && ! { [[ $value =~ ^(0|[1-9][0-9]{0,8})$ ]] && ((value >= $2 && value <= $3)); }; then
        echo "error: $1=$value: give a number from $2 to $3, or unset it" >&2
        exit 2
    fi
}
number NNODES 1 100000
number NODE_RANK 0 "$((${NNODES:-1} - 1))"
number PORT 1 65535
nodes=${NNODES:-1}
if [ "$nodes" -gt 1 ]; then
    for name in MASTER_ADDR NODE_RANK; do
        [ -n "${!name:-}" ] || { echo "error: NNODES=$nodes needs $name: MASTER_ADDR is the address of the first machine," \
            "NODE_RANK 0 on that one, 1 on the second, ..." >&2; exit 2; }
    done
fi
if [ -n "${PORT:-}" ] && [ "${NODE_RANK:-0}" -eq 0 ] &&
    ! "$python" -c 'import socket, sys; socket.create_server(("", int(sys.argv[1]))).close()' "$PORT" 2>/dev/null; then
    echo "error: PORT=$PORT is taken or not allowed; give another, or on one machine none" >&2
    exit 2
fi

gpus=$("$python" -c 'import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)
import torch; print(torch.cuda.device_count())')
if [ "$gpus" -gt 0 ] && [ "$processes" -gt "$gpus" ]; then
    echo "error: $processes GPUs requested, but this machine has $gpus; give at most $gpus" >&2
    exit 2
fi
# What one process can check is checked before the others start: an error is then one line, and the last one.
ARM_ENDS_WITH_PARENT=$$ "$python" "$tools/$tool" "${inputs[@]}" "$@" --check >/dev/null || exit
case " $* " in *" --check "*) exit ;; esac
if [ "$gpus" -eq 0 ]; then
    echo "No GPU found: starting $processes CPU processes that communicate over gloo."
    cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc) # nproc would report these instead of the cores
    [ "$processes" -le "$cores" ] || echo "warning: $processes processes on $cores cores will slow each other down" >&2
    # divide the cores among the processes
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores / processes > 0 ? cores / processes : 1))}
fi

if [ "$nodes" -gt 1 ]; then
    rendezvous=(--nnodes="$nodes" --node_rank="$NODE_RANK"
        --master_addr="$MASTER_ADDR" --master_port="${PORT:-29500}")
elif [ -n "${PORT:-}" ]; then
    rendezvous=(--nnodes=1 --master_addr=127.0.0.1 --master_port="$PORT")
else
    rendezvous=(--standalone) # picks a free port
fi
exec "$python" -m arm_toolkit.processes "${rendezvous[@]}" --nproc_per_node="$processes" \
    "$tools/$tool" "${inputs[@]}" --launcher pytorch "$@"
