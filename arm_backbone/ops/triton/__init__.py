"""Triton back end: GPU kernels, nothing to compile at installation."""
