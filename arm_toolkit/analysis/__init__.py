"""Inspects models: features, reconstructions, parameters and FLOPs."""
