"""Mutated inputs, for as long as wanted: `python -m tests.fuzz KIND --minutes 20` (see `tests.fuzz.__main__`)."""
