#!/usr/bin/env bash
# Makes the Python environment of this project, or repairs it, or finds it complete. See usage below.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: bash tools/install.sh [--help]

Makes .venv in this repository and installs everything in it: PyTorch, OpenMMLab (mmcv's operators are compiled), this
project. Uses the active virtual environment instead, if there is one. What is already right is left alone: run it again
after an interruption or an update, a complete environment takes a few seconds.

Takes about 2 minutes and 5 GB, and once for each machine type about 6 minutes more on 2 cores: the compiled wheels are
kept in ~/.cache/arm-backbone and found there by the next environment. Versions are locked in tools/versions.txt.

On a machine with an NVIDIA GPU mmcv's CUDA operators are compiled (needs nvcc of torch's CUDA version), and mamba-ssm and
causal-conv1d are tried; the project runs without these two.

Environment variables:
  PYTHON                Python to make .venv with, 3.10 or later (default: python3)
  MAX_JOBS              compilers at a time (default: number of cores)
  FORCE_CUDA=1          compile for CUDA where no GPU is seen (a login node); needs TORCH_CUDA_ARCH_LIST
  FORCE_CUDA=0          do as if there were no GPU
  TORCH_CUDA_ARCH_LIST  GPU types to compile for, e.g. "8.0;9.0" (default: those of this machine)

Example:
  PYTHON=python3.11 bash tools/install.sh && source .venv/bin/activate
TEXT
}

say() { printf 'install: %s\n' "$*"; }
die() { printf 'install: error: %s\n' "$*" >&2; exit 1; }

case "${1:-}" in
  "") ;;
  -h | --help) usage; exit 0 ;;
  *) die "unknown argument '$1' (see --help)" ;;
esac

exec </dev/null # nothing below may wait for an answer
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache="${XDG_CACHE_HOME:-$HOME/.cache}/arm-backbone"

# ---- the environment ---------------------------------------------------------------------------------------------------

env="${VIRTUAL_ENV:-$repo/.venv}"
python="$env/bin/python"
log="$env/install.log"
export PIP_REQUIRE_VIRTUALENV=1 # whatever goes wrong below, pip leaves the system's Python alone

is_python() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }
# A half-made or half-deleted .venv may hold a Python that is the system's: nothing may be installed there
is_env() { is_python "$python" && "$python" -I -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)'; }
has_pip() { "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null 2>&1; }

make_env() {
  local base="${PYTHON:-python3}"
  command -v "$base" >/dev/null || die "no '$base' found: install Python 3.10 or later, or name one: PYTHON=/path/to/python"
  is_python "$base" || die "$("$base" --version 2>&1) ('$base') is too old: 3.10 or later is needed, name one: PYTHON=/path/to/python"
  "$base" -c 'import ensurepip, venv' 2>/dev/null ||
    die "'$base' has no venv module: install it (Debian, Ubuntu: apt install python3-venv) or name another: PYTHON=/path/to/python"
  say "making $env with $("$base" --version)"
  "$base" -m venv --clear "$env" # --clear: a half-made one is made anew
}

# ---- what is missing ---------------------------------------------------------------------------------------------------

gpu=0 # nvcc is no sign of one: it may be installed anywhere
case "${FORCE_CUDA:-}" in
  1) gpu=1 ;;
  0) ;;
  *) case "$(nvidia-smi -L 2>/dev/null || true)" in GPU*) gpu=1 ;; esac ;;
esac

# Prints a line "section name==version" for each requirement of versions.txt that is not installed as locked; for mmcv also
# when its compiled module does not load, or has no CUDA operators and there is a GPU ("mmcv-cuda"); "project -" when this
# repository's packages are not what Python would import. One process, as this is all that a second run does.
check() {
  "$python" -I - "$repo" "$gpu" <<'PY'
import importlib
import importlib.metadata as metadata
import importlib.util
import sys
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

repo, gpu = Path(sys.argv[1]), sys.argv[2] == "1"
missing, section = [], None
for line in (repo / "tools" / "versions.txt").read_text().splitlines():
    if line.startswith("# ["):
        section = line[3 : line.index("]")]
    elif line and not line.startswith("#"):
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate():
            continue
        try:
            found = metadata.distribution(wanted.name)
            # RECORD is the last file that pip writes: without it the installation was interrupted
            right = wanted.specifier.contains(found.version) and found.read_text("RECORD") is not None
        except metadata.PackageNotFoundError:
            right = False
        if not right:
            missing.append((section, f"{wanted.name}{wanted.specifier}"))

if not missing or {section for section, _ in missing} <= {"cuda", "cuda-requires", "dev"}:
    try:
        importlib.import_module("torch")
        cuda = importlib.import_module("mmcv._ext").get_compiling_cuda_version()
    except Exception:  # not compiled, or for another torch ("undefined symbol")
        missing.append(("mmcv", "-"))
    else:
        if gpu and cuda == "not available":
            missing.append(("mmcv-cuda", "-"))

for name, folder in [("arm_pretrain", "pretrain"), *((p.name, p.name) for p in repo.glob("arm_*"))]:
    if (repo / folder / "__init__.py").exists():
        spec = importlib.util.find_spec(name)
        if not (spec and spec.origin and Path(spec.origin).parent.resolve() == (repo / folder).resolve()):
            missing.append(("project", "-"))
            break

kernels = repo / "arm_backbone" / "ops" / "cpu"  # compiled from sources that an update may have changed
library = kernels / "libarm_cpu.so"
if library.exists() and any(s.stat().st_mtime > library.stat().st_mtime for s in (kernels / "csrc").iterdir()):
    missing.append(("project", "-"))

for section, requirement in missing:
    if gpu or not section.startswith("cuda"):
        print(section, requirement)
PY
}

# of SECTION...: what is missing of these sections
of() { awk -v wanted=" $* " 'index(wanted, " " $1 " ") { print $2 }' <<<"$missing"; }

if is_env && missing=$(check 2>/dev/null) && [ -z "$missing" ]; then
  say "$env is complete"
  exit 0
fi

# One installation at a time for each user: two would compile the same wheel, or write to the same environment
mkdir -p "$cache"
if command -v flock >/dev/null; then
  exec 9>"$cache/lock"
  flock -n 9 || { say "another installation is running: waiting for it"; flock 9; }
fi

if [ -n "${VIRTUAL_ENV:-}" ]; then
  is_env || die "VIRTUAL_ENV is $env, which is no virtual environment with Python 3.10 or later: deactivate it, or make another"
  has_pip || die "the active environment, $env, has no pip"
elif ! { is_env && has_pip; }; then
  make_env
fi

# What an interrupted pip left without RECORD (see check) pip would count as installed
for info in "$("$python" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"/*.dist-info; do
  [ -e "$info/RECORD" ] || rm -rf "$info"
done
missing=$(check) || die "the check of $env failed (above): remove that folder and run this again"

# ---- installing --------------------------------------------------------------------------------------------------------

changed= # was anything installed since the last check?
check_again() {
  [ -z "$changed" ] || missing=$(check)
  changed=
}

# step WHAT TIME COMMAND...: says so, runs it with its output in the log. Its failure is returned.
step() {
  local what=$1 time=$2 start=$SECONDS
  shift 2
  changed=1
  say "$what (about $time)"
  printf '\n==== %s: %s\n%s\n' "$(date)" "$what" "$*" >>"$log"
  "$@" >>"$log" 2>&1 || return 1
  say "  done in $((SECONDS - start)) s"
}

failed() {
  printf '\nThe last lines of %s:\n' "$log" >&2
  tail -n 30 "$log" >&2
  die "$1. The whole output is in $log; running this again goes on from here"
}

pip() { "$python" -m pip --disable-pip-version-check --no-input "$@"; }

# get WHAT TIME [REQUIREMENT|OPTION]...
get() {
  local what=$1 time=$2
  shift 2
  case "$*" in *==*) ;; *) return 0 ;; esac # options alone: nothing is missing
  step "$what" "$time" pip install -c "$repo/tools/versions.txt" "$@" || failed "$what failed"
}

# The requirements hold neither spaces nor wildcards, so they are split into words
# shellcheck disable=SC2046
get "installing PyTorch" "1 minute, 4.5 GB" $(of torch)
# shellcheck disable=SC2046
get "installing libraries" "30 seconds" $(of build base openmmlab-requires dev)
# shellcheck disable=SC2046
get "installing mmengine, mmdet, mmseg" "15 seconds" --no-deps --no-build-isolation $(of openmmlab imaug | grep -v '^onedl-mmcv=' || true)

# With another torch, or without mmcv, it is clear that mmcv's operators must come; else a look shows whether they load
[ -n "$(of torch)" ] || of openmmlab | grep '^onedl-mmcv=' >/dev/null || check_again

# ---- compiled packages -------------------------------------------------------------------------------------------------

cuda=0   # compile for CUDA?
no_cuda= # why not, where there is a GPU
arch=    # GPU types to compile for
nvcc_cuda=
jobs="${MAX_JOBS:-$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)}"

look_at_torch() {
  local cuda_home
  read -r torch_version torch_cuda tag cuda_home < <("$python" -I -c '
import sys, torch
from torch.utils.cpp_extension import CUDA_HOME
print(torch.__version__, torch.version.cuda, "cp%d%d" % sys.version_info[:2], CUDA_HOME or "")' 2>>"$log") ||
    failed "importing torch failed"
  [ "$gpu" = 1 ] || return 0
  arch="${TORCH_CUDA_ARCH_LIST:-$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u | paste -sd ';' - || true)}"
  [ -n "$arch" ] || die "no GPU is seen: with FORCE_CUDA=1 name the types to compile for, e.g. TORCH_CUDA_ARCH_LIST='8.0;9.0'"
  export TORCH_CUDA_ARCH_LIST="$arch"
  nvcc_cuda=$("$cuda_home/bin/nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p' || true)
  # torch refuses another major version, and takes another minor one
  if [ "${nvcc_cuda%%.*}" = "${torch_cuda%%.*}" ]; then
    cuda=1
  else
    no_cuda="mmcv has no CUDA operators (Mask R-CNN needs them on a GPU): nvcc ${nvcc_cuda:-was not found} where torch has CUDA $torch_cuda. Install the CUDA toolkit $torch_cuda, set CUDA_HOME to it, and run this again"
  fi
}

# A compiled wheel fits one torch, Python, machine, and CPU or GPU types. pip's own cache knows only the Python and the
# machine, so it is left out (--no-cache-dir) and this folder takes its place.
key() { printf 'torch-%s_%s_%s_%s' "$torch_version" "$1" "$tag" "$(uname -sm)" | tr -c 'A-Za-z0-9.+_\n-' '_'; }

# compiled WHAT TIME KEY NAME==VERSION: the wheel from the folder, or compiled into it; then installed
compiled() {
  local what=$1 time=$2 wheels="$cache/wheels/$3" requirement=$4 file wheel fresh
  file="$wheels/$(tr - _ <<<"${requirement%%==*}")-${requirement##*==}"
  wheel=$(compgen -G "$file*.whl" | head -n 1 || true)
  if [ -z "$wheel" ]; then
    command -v "${CXX:-c++}" >/dev/null || die "no C++ compiler to build $requirement with (Debian, Ubuntu: apt install build-essential)"
    [ -e "$("$python" -I -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] ||
      die "no Python.h to build $requirement with (Debian, Ubuntu: apt install python3-dev)"
    # built beside and moved: an interrupted build leaves no wheel
    mkdir -p "$wheels"
    fresh=$(mktemp -d "$wheels/building.XXXXXX")
    # -g0: without debug symbols it compiles in 2/3 of the time, into 1/20 of the size
    if ! step "compiling $what with $jobs jobs" "$time" env CFLAGS="-g0 -O2" CXXFLAGS="-g0 -O2" MAX_JOBS="$jobs" \
      "$python" -m pip --disable-pip-version-check --no-input wheel --no-cache-dir --no-deps --no-build-isolation -w "$fresh" "$requirement"; then
      rm -rf "$fresh"
      return 1
    fi
    mv "$fresh"/*.whl "$wheels/"
    rm -rf "$fresh"
    wheel=$(compgen -G "$file*.whl" | head -n 1)
  fi
  step "installing $what" "5 seconds" pip install --no-deps --no-index --force-reinstall "$wheel"
}

mmcv_loads() { "$python" -I -c 'import torch, mmcv._ext' >>"$log" 2>&1; }

install_mmcv() {
  local mmcv how
  mmcv=$(grep '^onedl-mmcv==' "$repo/tools/versions.txt")
  if [ "$cuda" = 1 ]; then
    export FORCE_CUDA=1
    how=("mmcv's operators for CPU and GPU" "$((120 / jobs + 3)) minutes" "$(key "cuda-$arch")" "$mmcv")
    compiled "${how[@]}" || failed "compiling mmcv's operators failed"
  else
    # The GPUs are hidden from mmcv's build, which would else compile for CUDA whenever it sees one
    unset FORCE_CUDA
    how=("mmcv's operators for the CPU" "$((12 / jobs + 1)) minutes" "$(key cpu)" "$mmcv")
    CUDA_VISIBLE_DEVICES="" compiled "${how[@]}" || failed "compiling mmcv's operators failed"
  fi
  if ! mmcv_loads; then
    # say an older system's wheel in a home folder shared by several machines
    say "the compiled mmcv does not load here: compiling it again"
    rm -f "$cache/wheels/${how[2]}"/onedl_mmcv-*.whl
    compiled "${how[@]}" || failed "compiling mmcv's operators failed"
    mmcv_loads || failed "the compiled mmcv does not load"
  fi
}

[ -z "$(of torch openmmlab mmcv mmcv-cuda cuda cuda-requires)" ] || look_at_torch
if [ -n "$(of torch mmcv)" ] || of openmmlab | grep '^onedl-mmcv=' >/dev/null || { [ "$cuda" = 1 ] && [ -n "$(of mmcv-cuda)" ]; }; then
  install_mmcv
fi

# Fast CUDA kernels, none of them needed: arm_backbone has Triton kernels of its own. So a failure is one line, and
# remembered: compiling takes long, and every later run would try again.
no_kernels=
if [ -n "$(of cuda cuda-requires)" ]; then
  mkdir -p "$cache/wheels/$(key "cuda-$arch")"
  # shellcheck disable=SC2046
  get "installing what mamba-ssm needs" "15 seconds" $(of cuda-requires)
  for requirement in $(of cuda); do
    # another nvcc is another try
    marker="$cache/wheels/$(key "cuda-$arch")/$requirement.failed-with-nvcc-${nvcc_cuda:-none}"
    if [ ! -e "$marker" ]; then
      # Its setup downloads a wheel if there is one for this torch, and else compiles
      (compiled "$requirement" "1 to 30 minutes" "$(key "cuda-$arch")" "$requirement") || : >"$marker"
      changed=1
    fi
    [ ! -e "$marker" ] || no_kernels+="$requirement could not be built (optional; its output is in $log; to try again remove $marker)"$'\n'
  done
fi

# ---- this project ------------------------------------------------------------------------------------------------------

if [ -n "$(of project)" ]; then
  step "installing this project (editable)" "5 seconds" pip install --no-deps --no-build-isolation -e "$repo" ||
    failed "installing this project failed"
fi

check_again
left=$(grep -v '^\(cuda\|mmcv-cuda\)' <<<"$missing" || true)
[ -z "$left" ] || die "still not right after installing: $(tr '\n' ';' <<<"$left") see $log"
[ -z "$no_cuda" ] || say "warning: $no_cuda"
printf '%s' "$no_kernels" | while IFS= read -r line; do say "note: $line"; done
say "$env is complete; to use it: source '$env/bin/activate'"
