"""Inspects models: features, reconstructions, parameters, FLOPs, and the model zoo."""
