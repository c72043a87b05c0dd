#!/usr/bin/env bash
# Runs the whole test suite from a fresh clone: environment, lint, tests. See usage below.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: bash tools/run_tests.sh [--no-slow] [--help] [PYTEST-ARGUMENTS...]

Installs the environment (tools/install.sh), checks the style (ruff) and runs the test suite (pytest, one worker per
core, at most 8). Exits with an error if any of the three fails.

  --no-slow   skip the slow tests: real trainings, installations, several processes, ahead-of-time compilation

Other arguments go to pytest; -n 0 runs without workers, for a debugger.

Examples:
  bash tools/run_tests.sh
  bash tools/run_tests.sh --no-slow -k scan -x
TEXT
}

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc) # nproc would report these instead of the cores
workers=$((cores < 8 ? cores : 8))                        # each takes up to 2 GB
arguments=(-n "$workers" --dist loadgroup --no-loadscope-reorder --durations=10)
for argument in "$@"; do
  case "$argument" in
    --no-slow) arguments+=(-m "not slow") ;;
    -h | --help) usage; exit 0 ;;
    *) arguments+=("$argument") ;;
  esac
done

bash "$repo/tools/install.sh"
python="${VIRTUAL_ENV:-$repo/.venv}/bin/python" # where install.sh installs

cd "$repo"
lint=0
"$python" -m ruff check . || lint=$?
tests=0
"$python" -m pytest "${arguments[@]}" || tests=$?

# Last, so that pytest's output does not hide it
[ "$lint" = 0 ] || echo "run_tests: ruff check failed (see above the tests)" >&2
[ "$lint" = 0 ] && [ "$tests" = 0 ]
