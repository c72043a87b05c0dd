"""What the tools share: running configurations, sampling, checking data, merging test-time augmentation, drawing.

Importing it registers transforms, samplers, hooks and models with mmengine.
"""

from . import cpu_amp, ema, finite, loop, runner, sampler, transforms, watch

__all__ = ["cpu_amp", "ema", "finite", "loop", "runner", "sampler", "transforms", "watch"]
