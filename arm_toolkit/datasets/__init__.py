"""Data sets, their checks, samplers and transforms."""
