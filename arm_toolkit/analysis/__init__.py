"""Shows what a model does: features, reconstructions, parameters and FLOPs."""
