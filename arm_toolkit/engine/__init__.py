"""Runs configurations: launch, checks, runner, loops and hooks."""
