"""CPU back end: compiled C++ kernels."""
