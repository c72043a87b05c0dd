#!/usr/bin/env bash
# Creates, completes or repairs the Python environment of this project. See usage below.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: bash tools/install.sh [--mmcv-ops] [--mamba-ssm] [--help]

Creates .venv in this repository and installs PyTorch, OpenMMLab and this project into it. If a virtual environment is
active, installs into that one instead. Only what is missing or outdated is installed: run this again after an
interruption or an update. With a complete environment it ends after a few seconds. Takes about 2 minutes and 6 GB, with
or without a GPU. Versions are locked in tools/versions.txt.

Only this project's CPU kernels are compiled, in about 20 seconds. Without a C++ compiler, pip gets one for that
(ziglang, 100 MB), and removes it again. mmcv is installed without its operators; torchvision computes those that
Mask R-CNN needs, NMS and RoIAlign. If mmcv is there with compiled operators that load, they are kept.

  --mmcv-ops            compile all of mmcv's operators (deformable convolution, soft NMS, ...), for models of other
                        projects: about 6 minutes on 2 cores, once. Needs a C++ compiler, and on a GPU machine nvcc of
                        torch's CUDA version
  --mamba-ssm           on a GPU machine, also install the optional mamba-ssm and causal-conv1d; may have to compile
                        them for up to half an hour

Compiled wheels are kept in ~/.cache/arm-backbone for the next environment on the same type of machine.

Environment variables:
  PYTHON                Python to create .venv with, 3.10 or later (default: python3)
  MAX_JOBS              number of parallel compiler jobs (default: number of cores)
  FORCE_CUDA=1          install as on a machine with a GPU (on a login node); to compile, it needs TORCH_CUDA_ARCH_LIST
  FORCE_CUDA=0          install as on a machine without a GPU
  TORCH_CUDA_ARCH_LIST  GPU types to compile for, e.g. "8.0;9.0" (default: those of this machine)

Example:
  PYTHON=python3.11 bash tools/install.sh && source .venv/bin/activate
TEXT
}

say() { printf 'install: %s\n' "$*"; }
die() { printf 'install: error: %s\n' "$*" >&2; exit 1; }

mmcv_ops=0
mamba_ssm=0
for argument in "$@"; do
  case "$argument" in
    --mmcv-ops) mmcv_ops=1 ;;
    --mamba-ssm) mamba_ssm=1 ;;
    -h | --help) usage; exit 0 ;;
    *) die "unknown argument '$argument' (see --help)" ;;
  esac
done

exec </dev/null # no command below may wait for input
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache="${XDG_CACHE_HOME:-$HOME/.cache}/arm-backbone"

# ---- the environment ---------------------------------------------------------------------------------------------

env="${VIRTUAL_ENV:-$repo/.venv}"
python="$env/bin/python"
log="$env/install.log"
export PIP_REQUIRE_VIRTUALENV=1 # pip must never change the system's Python

is_python() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }
# In an incomplete .venv, python may be the system's, into which nothing may be installed
is_env() { is_python "$python" && "$python" -I -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)'; }
has_pip() { "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null 2>&1; }

make_env() {
  local base="${PYTHON:-python3}"
  command -v "$base" >/dev/null || die "'$base' not found: install Python 3.10 or later, or give its path: PYTHON=/path/to/python"
  is_python "$base" || die "$("$base" --version 2>&1) ('$base') is too old: give the path of Python 3.10 or later: PYTHON=/path/to/python"
  "$base" -c 'import ensurepip, venv' 2>/dev/null ||
    die "'$base' has no venv module: install it (Debian, Ubuntu: apt install python3-venv) or give another Python: PYTHON=/path/to/python"
  say "creating $env with $("$base" --version)"
  "$base" -m venv --clear "$env" # --clear removes an incomplete one first
}

# ---- what is missing ---------------------------------------------------------------------------------------------

gpu=0 # ask the driver: nvcc may also be installed on a machine without a GPU
case "${FORCE_CUDA:-}" in
  1) gpu=1 ;;
  0) ;;
  *) case "$(nvidia-smi -L 2>/dev/null || true)" in GPU*) gpu=1 ;; esac ;;
esac

# Prints a line "section name==version" for each requirement of versions.txt that is not installed in its locked
# version, and further lines:
#   upstream NAME==VERSION  a package of upstream OpenMMLab, whose files ours would overwrite
#   mmcv compile            --mmcv-ops is given, and its operators are not compiled, or not for the GPU
#   mmcv REASON             its compiled operators cannot be used here
#   mmcv-module -           it lacks the torchvision operators
#   project -               Python would import other packages than this repository's
#   kernels -               the CPU kernels are missing or outdated
# One Python process, because a second run of this script does nothing else.
check() {
  "$python" -I - "$repo" "$gpu" "$mmcv_ops" "$mamba_ssm" <<'PY'
import importlib
import importlib.machinery
import importlib.metadata as metadata
import importlib.util
import sys
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

repo = Path(sys.argv[1])
gpu, mmcv_ops, mamba_ssm = (argument == "1" for argument in sys.argv[2:])
missing, section = [], None
for line in (repo / "tools" / "versions.txt").read_text().splitlines():
    if line.startswith("# ["):
        section = line[3 : line.index("]")]
    elif line and not line.startswith("#"):
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate():
            continue
        if section == "compiler" or (section.startswith("cuda") and not mamba_ssm):
            continue
        try:
            found = metadata.distribution(wanted.name)
            # RECORD is the last file that pip writes; without it the installation was interrupted
            right = wanted.specifier.contains(found.version) and found.read_text("RECORD") is not None
        except metadata.PackageNotFoundError:
            right = False
        if not right:
            missing.append((section, f"{wanted.name}{wanted.specifier}"))

for name in ("mmengine", "mmcv", "mmcv-full", "mmcv-lite", "mmdet", "mmsegmentation"):
    try:
        missing.append(("upstream", f"{name}=={metadata.distribution(name).version}"))
    except metadata.PackageNotFoundError:
        pass

mmcv = importlib.util.find_spec("mmcv")
if mmcv and mmcv.origin and importlib.util.find_spec("torch"):
    folder = Path(mmcv.origin).parent
    if any((folder / f"_ext{suffix}").exists() for suffix in importlib.machinery.EXTENSION_SUFFIXES):
        try:
            importlib.import_module("torch")
            cuda = importlib.import_module("mmcv._ext").get_compiling_cuda_version()
        except Exception:  # e.g. compiled for another torch ("undefined symbol")
            missing.append(("mmcv", "compile" if mmcv_ops else "do_not_load"))
        else:
            if gpu and cuda == "not available":
                missing.append(("mmcv", "compile" if mmcv_ops else "have_no_CUDA"))
    elif mmcv_ops:
        missing.append(("mmcv", "compile"))
    else:
        ours, theirs = repo / "arm_toolkit" / "mmcv_ops" / "_ext.py", folder / "_ext.py"
        if not theirs.exists() or theirs.read_bytes() != ours.read_bytes():
            missing.append(("mmcv-module", "-"))

for name, folder in [("arm_pretrain", "pretrain"), *((p.name, p.name) for p in repo.glob("arm_*"))]:
    if (repo / folder / "__init__.py").exists():
        spec = importlib.util.find_spec(name)
        if not (spec and spec.origin and Path(spec.origin).parent.resolve() == (repo / folder).resolve()):
            missing.append(("project", "-"))
            break

kernels = repo / "arm_backbone" / "ops" / "cpu"  # compiled from sources that an update may have changed
library = kernels / "libarm_cpu.so"
built = library.stat().st_mtime if library.exists() else 0
if any(source.stat().st_mtime > built for source in (kernels / "csrc").iterdir()):
    missing.append(("kernels", "-"))

for section, requirement in missing:
    print(section, requirement)
PY
}

# of SECTION...: the missing requirements of these sections
of() { awk -v wanted=" $* " 'index(wanted, " " $1 " ") { print $2 }' <<<"$missing"; }

if is_env && missing=$(check 2>/dev/null) && [ -z "$missing" ]; then
  say "$env is complete"
  exit 0
fi

# One installation per user at a time: two could compile the same wheel or write to the same environment
mkdir -p "$cache"
if command -v flock >/dev/null; then
  exec 9>"$cache/lock"
  flock -n 9 || { say "waiting for another installation to end"; flock 9; }
fi

if [ -n "${VIRTUAL_ENV:-}" ]; then
  is_env || die "VIRTUAL_ENV is $env, which is not a virtual environment with Python 3.10 or later: deactivate it, or create another"
  has_pip || die "the active environment, $env, has no pip: deactivate it, or create another"
elif ! { is_env && has_pip; }; then
  make_env
fi

# Remove packages without RECORD (see check): pip was interrupted, but would count them as installed
for info in "$("$python" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"/*.dist-info; do
  [ -e "$info/RECORD" ] || rm -rf "$info"
done
missing=$(check) || die "checking $env failed (see above): remove that folder and run this again"

# ---- installing --------------------------------------------------------------------------------------------------

changed= # not empty if anything was installed since the last check
check_again() {
  [ -z "$changed" ] || missing=$(check)
  changed=
}

# step WHAT TIME COMMAND...: announce and run a command, with its output in the log; return 1 if it fails
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
  die "$1. The complete output is in $log. Run this again to continue"
}

pip() { "$python" -m pip --disable-pip-version-check --no-input "$@"; }

# get WHAT TIME [REQUIREMENT|OPTION]...
get() {
  local what=$1 time=$2
  shift 2
  case "$*" in *==*) ;; *) return 0 ;; esac # only options: nothing is missing
  step "$what" "$time" pip install -c "$repo/tools/versions.txt" "$@" || failed "$what failed"
}

upstream=$(of upstream | paste -sd ' ')
[ -z "$upstream" ] || die "$env holds packages of upstream OpenMMLab ($upstream), whose files those of tools/versions.txt would overwrite: deactivate it, or remove them first: pip uninstall $(sed 's/==[^ ]*//g' <<<"$upstream")"

# Requirements contain neither spaces nor wildcards, so they can be split into words
# shellcheck disable=SC2046
get "installing PyTorch" "1 minute, 4.5 GB" $(of torch)
# shellcheck disable=SC2046
get "installing libraries" "40 seconds" $(of build base openmmlab-requires export data dev)
# shellcheck disable=SC2046
get "installing mmengine, mmdet, mmseg" "15 seconds" --no-deps --no-build-isolation $(of openmmlab imaug | grep -v '^onedl-mmcv=' || true)

# without_ops OPTION...: install mmcv without its operators: its setup compiles them only where it can import torch, which
# it cannot in the environment that pip makes for a build. Not from pip's cache, where a compiled wheel may be.
without_ops() {
  step "installing mmcv without its operators" "10 seconds" env -u PIP_NO_BUILD_ISOLATION "$python" -m pip \
    --disable-pip-version-check --no-input install --no-cache-dir --no-deps "$@" "$mmcv" || failed "installing mmcv failed"
}

mmcv=$(grep '^onedl-mmcv==' "$repo/tools/versions.txt")
if of openmmlab | grep '^onedl-mmcv=' >/dev/null; then
  without_ops
fi
check_again # compiled operators need the new torch; and mmcv may be new
case "$(of mmcv)" in
  "" | compile) ;;
  *)
    say "mmcv's compiled operators $(of mmcv | tr _ ' '): torchvision's replace them (to compile them again: --mmcv-ops)"
    without_ops --force-reinstall
    check_again
    ;;
esac

# ---- compiled packages -------------------------------------------------------------------------------------------

cuda=0 # whether to compile for CUDA
arch=  # GPU types to compile for
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
  [ -n "$arch" ] || die "no GPU found: with FORCE_CUDA=1 also give the GPU types to compile for, e.g. TORCH_CUDA_ARCH_LIST='8.0;9.0'"
  export TORCH_CUDA_ARCH_LIST="$arch"
  nvcc_cuda=$("$cuda_home/bin/nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p' || true)
  # torch refuses another major version, but accepts another minor one
  if [ "${nvcc_cuda%%.*}" = "${torch_cuda%%.*}" ]; then
    cuda=1
  else
    die "to compile for the GPU, the CUDA toolkit $torch_cuda of torch is needed, but nvcc ${nvcc_cuda:-was not found}: install it, set CUDA_HOME to it, and run this again"
  fi
}

# A compiled wheel fits one version of torch and Python, one type of machine, and the CPU or certain GPU types. pip's
# own cache distinguishes only Python and machine, so it is disabled (--no-cache-dir) and this folder replaces it.
key() { printf 'torch-%s_%s_%s_%s' "$torch_version" "$1" "$tag" "$(uname -sm)" | tr -c 'A-Za-z0-9.+_\n-' '_'; }

# has_compiler: whether setup.py, which looks in the same place, finds a C++ compiler
has_compiler() {
  "$python" -I -c '
import os, shlex, shutil, sys, sysconfig
compiler = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
sys.exit(shutil.which(shlex.split(compiler)[0]) is None)'
}

# compiled WHAT TIME KEY NAME==VERSION: install the wheel from the folder; if it is not there, compile it first
compiled() {
  local what=$1 time=$2 wheels="$cache/wheels/$3" requirement=$4 file wheel fresh
  file="$wheels/$(tr - _ <<<"${requirement%%==*}")-${requirement##*==}"
  wheel=$(compgen -G "$file*.whl" | head -n 1 || true)
  if [ -z "$wheel" ]; then
    has_compiler || die "building $requirement needs a C++ compiler (Debian, Ubuntu: apt install build-essential)"
    [ -e "$("$python" -I -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] ||
      die "building $requirement needs Python.h (Debian, Ubuntu: apt install python3-dev)"
    # build in another folder, then move: an interrupted build leaves no wheel
    mkdir -p "$wheels"
    fresh=$(mktemp -d "$wheels/building.XXXXXX")
    # -g0: without debug symbols, compilation takes 2/3 of the time and the result 1/20 of the space
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
  local how
  if [ "$cuda" = 1 ]; then
    export FORCE_CUDA=1
    how=("mmcv's operators for CPU and GPU" "$((120 / jobs + 3)) minutes" "$(key "cuda-$arch")" "$mmcv")
    compiled "${how[@]}" || failed "compiling mmcv's operators failed"
  else
    # hide the GPUs from mmcv's build, which otherwise compiles for CUDA whenever there is one
    unset FORCE_CUDA
    how=("mmcv's operators for the CPU" "$((12 / jobs + 1)) minutes" "$(key cpu)" "$mmcv")
    CUDA_VISIBLE_DEVICES="" compiled "${how[@]}" || failed "compiling mmcv's operators failed"
  fi
  if ! mmcv_loads; then
    # e.g. the wheel of an older system in a home folder that several machines share
    say "the compiled mmcv does not load on this machine: compiling it again"
    rm -f "$cache/wheels/${how[2]}"/onedl_mmcv-*.whl
    compiled "${how[@]}" || failed "compiling mmcv's operators failed"
    mmcv_loads || failed "the compiled mmcv does not load"
  fi
}

[ "$(of mmcv)" != compile ] && [ -z "$(of cuda cuda-requires)" ] || look_at_torch
[ "$(of mmcv)" != compile ] || install_mmcv

# Optional: arm_backbone has its own Triton kernels
if [ -n "$(of cuda cuda-requires)" ]; then
  [ "$cuda" = 1 ] || die "--mamba-ssm needs an NVIDIA GPU (or FORCE_CUDA=1, see --help)"
  # shellcheck disable=SC2046
  get "installing what mamba-ssm needs" "15 seconds" $(of cuda-requires)
  for requirement in $(of cuda); do
    # the package's setup downloads a wheel if there is one for this torch, otherwise it compiles
    compiled "$requirement" "1 to 30 minutes" "$(key "cuda-$arch")" "$requirement" || failed "building $requirement failed"
  done
fi

# ---- this project ------------------------------------------------------------------------------------------------

if [ -n "$(of project kernels)" ]; then
  if [ "${ARM_ZIG:-}" != 1 ] && has_compiler; then
    step "installing this project (editable)" "20 seconds" pip install --no-deps --no-build-isolation -e "$repo" ||
      failed "installing this project failed"
  else # pip then gets ziglang for setup.py, in an environment that it removes again
    step "installing this project (editable), with a compiler from PyPI" "40 seconds" pip install --no-deps -e "$repo" ||
      failed "installing this project failed"
  fi
fi

check_again
if [ -n "$(of mmcv-module)" ]; then
  step "installing the torchvision operators into mmcv" "5 seconds" "$python" -I -m arm_toolkit.mmcv_ops ||
    failed "installing the torchvision operators failed"
fi

check_again
left=$(grep -v '^kernels' <<<"$missing" || true)
[ -z "$left" ] || die "still missing after the installation: $(tr '\n' ';' <<<"$left") see $log"
[ -z "$(of kernels)" ] || say "note: the CPU kernels could not be built (see $log); PyTorch's operators, 10 times slower, replace them"
say "$env is complete; to activate it: source '$env/bin/activate'"
