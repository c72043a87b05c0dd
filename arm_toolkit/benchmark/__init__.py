"""Measures the speed and memory of operators and models, side by side in one run."""
