"""What a resumed run says about its differences from the run that it continues, and what it refuses.

A checkpoint holds `run_facts` under the key "run"; those of older versions do not, and are compared less.
"""

import torch
from mmengine.runner import EpochBasedTrainLoop

from arm_backbone.checkpoint.files import CheckpointError

AGAIN = "or start a new run from its weights with --cfg-options load_from=FILE"
SIGNATURES = ("momentum", "betas", "alpha", "rho", "lr_decay", "etas", "lambd")  # settings that tell optimizers apart


def run_facts(runner) -> dict:
    """What must not change, or whose change is worth a line, when a run is resumed."""
    loader, wrapper = runner.train_dataloader, runner.optim_wrapper
    return dict(
        images=len(loader.dataset),
        batch_size=loader.batch_size or loader.batch_sampler.batch_size,
        processes=runner.world_size,
        iterations_per_epoch=len(loader) if isinstance(runner.train_loop, EpochBasedTrainLoop) else None,
        optimizer=type(wrapper.optimizer).__name__,
        accumulative_counts=wrapper._accumulative_counts,  # no public name
    )


def differences(checkpoint: dict, runner, where: str) -> list[str]:
    """Compare the run that a checkpoint comes from with the one that resumes it.

    Returns:
        one line per difference that is allowed.

    Raises:
        CheckpointError: if continuing would be meaningless: other iterations per epoch, another optimizer, or an
            optimizer state that is absent or not finite.
    """
    then, now, meta = checkpoint.get("run"), run_facts(runner), checkpoint["meta"]
    then = now | {key: value for key, value in (then if isinstance(then, dict) else {}).items() if key in now}
    epoch = now["iterations_per_epoch"]
    if epoch and (then["iterations_per_epoch"] != epoch or not 0 <= meta["iter"] - meta["epoch"] * epoch <= epoch):
        before = then["iterations_per_epoch"] if then["iterations_per_epoch"] != epoch else "another number of"
        if before is None:
            raise CheckpointError(
                f"{where} comes from a run that counted iterations, this one counts epochs; give a checkpoint of this "
                f"configuration, {AGAIN}"
            )
        raise CheckpointError(
            f"{where}: an epoch had {before} iterations, here it has {epoch} ({now['images']} images in batches of "
            f"{now['batch_size']} on {now['processes']} processes): schedule and order of images cannot be continued; "
            f"set data set and batch size as they were, {AGAIN}"
        )
    _check_optimizer(checkpoint, then, now, runner, where)
    lines = []
    if then["images"] != now["images"]:
        lines.append(f"the data set has {now['images']} images, it had {then['images']}: their order is another one")
    totals = [facts["batch_size"] * facts["processes"] for facts in (now, then)]
    if totals[0] != totals[1]:
        lines.append(f"a batch has {totals[0]} images, it had {totals[1]}: the learning rate is not adapted to that")
    elif then["processes"] != now["processes"]:
        lines.append(
            f"{now['processes']} processes continue a run of {then['processes']}: results are equal but for rounding"
        )
    if then["accumulative_counts"] != now["accumulative_counts"]:
        lines.append(
            f"optim_wrapper.accumulative_counts is {now['accumulative_counts']}, it was {then['accumulative_counts']}"
        )
    return lines


def _signature(group: dict) -> set[str]:
    found = {key for key in SIGNATURES if key in group}
    return found - {"momentum"} if "betas" in found else found  # mmengine's momentum schedules add it to Adam's


def _check_optimizer(checkpoint: dict, then: dict, now: dict, runner, where: str) -> None:
    state = checkpoint.get("optimizer")
    if not isinstance(state, dict) or "param_groups" not in state:
        raise CheckpointError(
            f"{where} has no optimizer state, as a best_*.pth: it cannot be continued; resume from an epoch_*.pth or "
            f"iter_*.pth beside it, {AGAIN}"
        )
    groups, fresh = state["param_groups"], runner.optim_wrapper.optimizer.param_groups
    kinds = [_signature(group[0] if group else {}) for group in (groups, fresh)]
    if then["optimizer"] != now["optimizer"] or kinds[0] != kinds[1]:
        was = then["optimizer"] if then["optimizer"] != now["optimizer"] else "another one"
        raise CheckpointError(
            f"{where}: the optimizer was {was}, here it is {now['optimizer']}, which cannot use its state; set "
            f"optim_wrapper.optimizer.type as it was, {AGAIN}"
        )
    moments = state.get("state") or {}
    if not moments and checkpoint["meta"]["iter"] >= then["accumulative_counts"] and "betas" in kinds[1]:
        raise CheckpointError(f"{where}: the optimizer state is empty: it cannot be continued; give another, {AGAIN}")
    tensors = [value for part in moments.values() for value in part.values() if isinstance(value, torch.Tensor)]
    bad = sum(not bool(tensor.isfinite().all()) for tensor in tensors)
    if bad:
        raise CheckpointError(
            f"{where}: {bad} of {len(tensors)} tensors of the optimizer state are not finite: every step would make "
            f"weights NaN; resume from an earlier checkpoint, {AGAIN}"
        )
