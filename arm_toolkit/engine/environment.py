"""Checks environment variables and the launcher before anything is made. A variable that is empty counts as unset."""

import os
import re

import torch

from arm_backbone.ops.dispatch import check_environment as check_kernels

from ..errors import ConfigError

# variables that a launcher sets for each of its processes, and what starts the processes
LAUNCHERS = {
    "pytorch": (("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"), "tools/dist_train.sh or torchrun"),
    "slurm": (("SLURM_PROCID", "SLURM_NTASKS", "SLURM_NODELIST"), "tools/slurm_train.sh"),
    "mpi": (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"), "mpirun"),
}
NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "SLURM_PROCID", "SLURM_NTASKS", "OMPI_COMM_WORLD_RANK")
# variables of any run, the form of their values, and what to give
FORMS = {
    "OMP_NUM_THREADS": (r"\s*0*[1-9]\d*(,0*[1-9]\d*)*\s*", "a number of threads from 1"),
    "ARM_KEEP_FREED_MEMORY": ("[01]", "0 or 1"),
    "ARM_ONEDNN_PRODUCTS": ("[01]", "0 or 1"),
}


def check_environment(launcher: str = "none") -> None:
    """Check the variables that choose kernels, and those that the launcher must have set.

    Args:
        launcher: the value of --launcher.

    Raises:
        ConfigError: naming the variable, its value and what to give.
    """
    try:
        check_kernels(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for name, (pattern, remedy) in FORMS.items():
        value = os.environ.get(name, "")
        if value and not re.fullmatch(pattern, value):
            raise ConfigError(f"{name}={value}: give {remedy}, or unset it")
    if launcher in ("slurm", "mpi") and not torch.cuda.is_available():
        raise ConfigError(f"--launcher {launcher} needs a GPU; on CPUs use tools/dist_train.sh")
    needed, starter = LAUNCHERS.get(launcher, ((), ""))
    for name in ("LOCAL_RANK", *needed):
        value = os.environ.get(name)
        if value == "":
            del os.environ[name]
        if not value:
            if name in needed:
                raise ConfigError(f"--launcher {launcher}: {name} is not set; start the processes with {starter}")
        elif name in NUMBERS and not (value.isascii() and value.isdigit()):
            raise ConfigError(f"{name}={value}: give a whole number, or unset it")
    if launcher == "pytorch":
        rank, world = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
        if rank >= world:
            raise ConfigError(f"RANK={rank}: with WORLD_SIZE={world} give 0 to {world - 1}")
        if not 0 < int(os.environ["MASTER_PORT"]) < 2**16:
            raise ConfigError(f"MASTER_PORT={os.environ['MASTER_PORT']}: give a number from 1 to 65535")
