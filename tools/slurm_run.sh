#!/usr/bin/env bash
# Starts a tool with srun; called by slurm_train.sh and slurm_test.sh.
#   slurm_run.sh TOOL PARTITION JOB_NAME CONFIG [arguments of TOOL]
set -euo pipefail
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tool=$1
shift
usage() { sed -n '2,/^exec/{/^exec/d;s/^# \{0,1\}//;p}' "$tools/slurm_${tool%.py}.sh"; }
case " $* " in *" --help "* | *" -h "*) usage && exit ;; esac
if [ $# -lt 3 ]; then
    usage
    exit 2
fi
partition=$1 job=$2
shift 2
command -v srun >/dev/null || { echo "error: srun is not installed here; on one machine use tools/dist_${tool%.py}.sh" >&2; exit 2; }
for name in GPUS GPUS_PER_NODE CPUS_PER_TASK; do
    value=${!name:-}
    if [ -n "$value" ] && ! [[ $value =~ ^[1-9][0-9]{0,5}$ ]]; then
        echo "error: $name=$value: give a number of 1 or more, or unset it" >&2
        exit 2
    fi
done
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
# shellcheck disable=SC2086 # SRUN_ARGS may hold several words
exec srun --partition="$partition" --job-name="$job" --gres="gpu:$per_node" --ntasks="$gpus" --ntasks-per-node="$per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$tools/$tool" "$@" --launcher=slurm
