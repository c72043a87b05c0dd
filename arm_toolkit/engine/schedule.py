"""Schedules that end when the training ends, and schedules and rates that a resumed run takes from its configuration.

A schedule counts epochs or iterations (`by_epoch`), like the training itself.
"""

import copy
import math
import warnings

from mmengine.runner import EpochBasedTrainLoop

from ..errors import ConfigError

# what a scheduler changes as it steps
MOVING = ("last_step", "_global_step", "_last_value", "base_values", "best", "num_bad_epochs", "cooldown_counter")


def follow_length(schedule: list[dict], max_epochs: int | None, max_iters: int) -> tuple[list[dict], list[str]]:
    """Make the last schedule end with the training; its milestones scale with it.

    Others, such as a warm-up, keep their length if they fit, else they are shortened in proportion.

    Args:
        max_epochs: length of the training, None if it counts iterations.
        max_iters: its length in iterations.

    Returns:
        the new schedule, and one line if it differs from the former.

    Raises:
        ConfigError: if a part counts epochs in a training that counts iterations.
    """
    for index, part in enumerate(schedule):
        if max_epochs is None and part.get("by_epoch", True):
            raise ConfigError(
                f"param_scheduler.{index}.by_epoch=True, but train_cfg counts iterations (max_iters={max_iters}): set "
                "by_epoch=False, and begin and end in iterations"
            )
    epoch = max_iters / max_epochs if max_epochs else 1
    scales = [epoch if part.get("by_epoch", True) else 1 for part in schedule]
    ends = [part.get("end", max_iters / scale) * scale for part, scale in zip(schedule, scales, strict=True)]
    last = max(ends, default=max_iters)
    if round(last) == max_iters:
        return schedule, []
    ratio, followed = max_iters / last, []

    def moved(step: float, scale: float) -> int:
        return int(step) if step * scale < max_iters else int(step * ratio)

    for part, scale, end in zip(schedule, scales, ends, strict=True):
        part = copy.deepcopy(part)
        length = part.get("end", 0) - part.get("begin", 0)
        if "begin" in part:
            part["begin"] = moved(part["begin"], scale)
        if end == last:
            part["end"] = round(max_iters / scale)
            if "milestones" in part:
                part["milestones"] = [round(step * ratio) for step in part["milestones"]]
            if part.get("T_max") == length:
                part["T_max"] = part["end"] - part.get("begin", 0)
        elif "end" in part:
            part["end"] = moved(part["end"], scale)
        followed.append(part)
    line = f"param_scheduler ends after {last:g} of {max_iters} iterations: it is changed to end with the training"
    return [part for part in followed if "end" not in part or part.get("begin", 0) < part["end"]], [line]


class Configured:
    """Rates and schedules as the configuration states them, noted before a checkpoint replaces them.

    Args:
        optim_wrapper: as built.
        schedulers: as built, before their first step.
    """

    def __init__(self, optim_wrapper, schedulers: list | None) -> None:
        self.groups = [_settings(group) for group in optim_wrapper.param_groups]
        self.schedulers = [copy.deepcopy(scheduler.state_dict()) for scheduler in schedulers or ()]

    def restore(self, runner, saved: object) -> list[str]:
        """Continue the saved schedules, or use the configured rates and schedules where they differ from the saved.

        The rates are then those that a run with this configuration would have reached by now. What the checkpoint
        holds in place of schedules has no other effect.

        Args:
            saved: states of the schedulers in the checkpoint, None if it has none.

        Returns:
            one line per difference.
        """
        lines, groups = [], runner.optim_wrapper.param_groups
        for key in sorted({key for group in self.groups for key in group}):
            now = [group.get(key) for group in self.groups]
            then = [group.get(key, group.get(key.removeprefix("initial_"))) for group in groups]
            name = key.removeprefix("initial_")
            scheduled = any(f"initial_{key}" in group for group in (*self.groups, *groups))
            if scheduled and any(f"initial_{key}" in group for group in self.groups):
                continue
            if scheduled:  # the run had a schedule, this one has none
                then = [group.get(f"initial_{key}") for group in groups]
            known = any(value is not None for value in then)  # another version of PyTorch has other settings
            if known and list(map(_plain, now)) != list(map(_plain, then)):
                lines.append(f"optim_wrapper.optimizer.{name} is {_largest(now)}, it was {_largest(then)}")
        if not _continues(saved, self.schedulers):
            lines.append("param_scheduler or the length of training is another one")
        if lines:
            self._replay(runner, groups)
        else:
            for scheduler, state in zip(runner.param_schedulers or [], saved or [], strict=True):
                scheduler.load_state_dict(state)
        return [f"{line}; the rates are now those of a run that had this from its start" for line in lines]

    def _replay(self, runner, groups: list[dict]) -> None:
        for group, settings in zip(groups, self.groups, strict=True):
            for key in [key for key in group if key.startswith("initial_") and key not in settings]:
                del group[key]  # of a schedule that this run does not have
            group.update(settings)
        schedulers = runner.param_schedulers or []
        for scheduler, state in zip(schedulers, self.schedulers, strict=True):
            scheduler.load_state_dict(copy.deepcopy(state))
        length = len(runner.train_dataloader) if isinstance(runner.train_loop, EpochBasedTrainLoop) else 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mmengine's advice to call optimizer.step first
            for step in range(1, runner.iter + 1):
                ends_epoch = length and step % length == 0 and step // length <= runner.epoch
                for scheduler in schedulers:
                    if ends_epoch or not scheduler.by_epoch:
                        scheduler.step()


def _settings(group: dict) -> dict:
    return {key: value for key, value in group.items() if key != "params"}


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _largest(values: list) -> object:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return f"{max(numbers):g}" if numbers else _plain(values[0])


def _continues(saved: object, own: list[dict]) -> bool:
    """Whether saved states of schedulers are those of an earlier step of this run's."""
    saved = [] if saved is None else saved
    if not isinstance(saved, list | tuple) or not all(isinstance(state, dict) for state in saved):
        return False
    if len(saved) != len(own) or any(_constant(one) != _constant(other) for one, other in zip(saved, own, strict=True)):
        return False
    return all(
        _same_kind(state.get(key), other[key])
        for state, other in zip(saved, own, strict=True)
        for key in MOVING
        if key in other
    )


def _constant(state: dict) -> dict:
    """What the constructor of a scheduler set."""
    return {k: _plain(v) for k, v in state.items() if k not in MOVING and not callable(v)}


def _same_kind(found: object, expected: object) -> bool:
    """Whether two values are numbers (but not NaN), or lists of as many."""
    if isinstance(expected, list | tuple):
        same = isinstance(found, list | tuple) and len(found) == len(expected)
        return same and all(map(_same_kind, found, expected))
    return isinstance(found, int | float) and not math.isnan(found)
