"""Trains and tests the models of configurations: launch, checks, runner, loops and hooks."""
