"""Triton back end: GPU kernels, compiled at their first use."""
