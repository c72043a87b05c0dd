"""Checkpoints: reading, writing, converting and loading them, with an account of every tensor."""
