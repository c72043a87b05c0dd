#!/usr/bin/env bash
# The whole test suite, from a fresh clone alone: environment, lint, tests. See usage below.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: bash tools/run_tests.sh [--no-slow] [--help] [PYTEST-ARGUMENTS...]

Makes the environment (tools/install.sh), checks the style (ruff), runs the test suite (pytest). Exits with an error if
any of the three finds something.

  --no-slow   leaves out the tests marked slow (real trainings, a real pip installation): for the minutes between edits

Other arguments go to pytest.

Examples:
  bash tools/run_tests.sh
  bash tools/run_tests.sh --no-slow -k scan -x
TEXT
}

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
arguments=(--durations=10) # which tests take the time
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

# Last, so that pytest's many lines do not hide it
[ "$lint" = 0 ] || echo "run_tests: ruff check found something (above the tests)" >&2
[ "$lint" = 0 ] && [ "$tests" = 0 ]
