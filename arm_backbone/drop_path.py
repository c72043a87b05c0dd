"""Stochastic depth: how often the branches of each block are dropped, in the order of the blocks."""


def linear_rates(rate: float, num_layers: int) -> list[float]:
    """From 0 for the first to `rate` for the last, as in Vim and VMamba."""
    return [rate * i / max(num_layers - 1, 1) for i in range(num_layers)]


def late_rates(rate: float, num_layers: int) -> list[float]:
    """`[0] + linspace(0, rate, num_layers)[:-1]`, as in ARM's reference code: the last block stays below `rate`."""
    return [0.0] + [rate * i / (num_layers - 1) for i in range(num_layers - 1)]
