"""Reads, writes, converts and loads checkpoints, and accounts for every tensor."""
