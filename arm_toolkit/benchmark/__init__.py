"""Measures speed and memory of operators and models, side by side."""
