"""Stops training before a loss, gradient or weight that is not finite reaches an optimizer step."""

import functools
import math
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor

from arm_backbone.checkpoint.accounting import shorten
from arm_backbone.checkpoint.writing import WriteError, replacing, uninterrupted

from ..errors import NotFinite

MAX_SKIPPED = 20  # steps in a row that a loss scaler may skip: from its initial 65536 it reaches 1 in 16


@HOOKS.register_module(name=["FiniteHook", "FiniteLossHook"])  # the second is its name in older configurations
class FiniteHook(Hook):
    """Stops a run before the optimizer step if loss, gradient norm or a weight is not finite. Every `ARMRunner` has it.

    Writes the batch to `non_finite_batch_RANK.pth` in the work dir; the error names the batch's files. A loss scaler
    (float16) may skip steps whose scaled gradients overflow, as it does without this hook.

    Patches `update_params` and `step` of the run's optimizer wrapper: mmengine calls no hook between loss and step.

    Cost: the norms of gradients and weights (for ARM-B 23 ms on 2 CPU cores, where a step with one image takes 0.4 s),
    and one wait for the GPU, just before the step (not measured on one). mmengine waits for the loss of every iteration
    anyway, just after the step (`update_scalar` calls `item`). A check before the backward pass would keep the GPU idle
    for longer: nothing would be queued behind the forward pass.

    Raises:
        NotFinite: in each process that meets the value. Gradients are averaged before the step, so with several
            processes it usually is all of them.
    """

    def before_train(self, runner) -> None:
        self._runner, self._skipped = runner, 0
        wrapper = runner.optim_wrapper
        update_params, step = wrapper.update_params, wrapper.step

        def checked_update(loss: Tensor, *args, **kwargs) -> None:
            self._loss = loss.detach()
            update_params(loss, *args, **kwargs)
            if self._loss is not None:  # no step: gradients are being accumulated
                self._check_loss(float(self._loss))

        @functools.wraps(step)  # with the mark by which mmengine's schedules know their own
        def checked_step(**kwargs) -> None:
            self._check_step(wrapper)
            self._loss = None
            step(**kwargs)

        wrapper.update_params, wrapper.step = checked_update, checked_step

    def before_train_iter(self, runner, batch_idx: int, data_batch: dict | None = None) -> None:
        self._batch = data_batch

    def _check_loss(self, loss: float) -> None:
        if not math.isfinite(loss):
            self._stop(f"the loss is {loss}")

    def _check_step(self, wrapper) -> None:
        used = [p for group in wrapper.optimizer.param_groups for p in group["params"] if p.grad is not None]
        loss, gradients, weights = self._loss.float(), _norm([p.grad for p in used]), _norm(used)
        values = torch.stack([loss, gradients.to(loss.device), weights.to(loss.device)]).tolist()
        if all(map(math.isfinite, values)):
            self._skipped = 0
            return
        self._check_loss(values[0])
        if not math.isfinite(values[2]):
            bad = self._names(used, lambda p: p)  # empty if only the sum of squares overflows
            if bad:
                self._stop(f"the weights of {bad} are not finite")
        if not math.isfinite(values[1]):
            scaler = getattr(wrapper, "loss_scaler", None)
            self._skipped += 1
            if scaler is None or scaler.get_scale() <= 1 or self._skipped > MAX_SKIPPED:
                bad = self._names(used, lambda p: p.grad)
                self._stop(f"the gradient norm is {values[1]}{f' (gradients of {bad})' if bad else ''}")

    def _names(self, used: list[Tensor], tensor_of) -> str:
        """The first names of the parameters whose values are not finite."""
        bad = {id(p) for p in used if not bool(_local(tensor_of(p)).isfinite().all())}
        names = [name.removeprefix("module.") for name, p in self._runner.model.named_parameters() if id(p) in bad]
        return f"{names[0]} and {len(names) - 1} more tensors" if len(names) > 1 else "".join(names)

    def _stop(self, what: str) -> None:
        runner = self._runner
        path = Path(runner.work_dir) / f"non_finite_batch_{runner.rank}.pth"
        files = batch_files(self._batch)
        try:
            with uninterrupted(), replacing(path) as partial:
                torch.save(dict(iteration=runner.iter + 1, inputs=self._batch["inputs"], files=files), partial)
            saved = f"is saved in {path}: inspect it, then continue"
        except WriteError as error:
            saved = f"cannot be saved in {path} ({error.reason}); continue"
        named = f" of {shorten(files)}" if files else ""
        raise NotFinite(
            f"iteration {runner.iter + 1}: {what} and no step was taken; the batch{named} {saved} with --resume, "
            "with a lower learning rate if it happens again (--cfg-options optim_wrapper.optimizer.lr=LR)"
        )


def batch_files(batch: dict) -> list[str]:
    """Names of a batch's files, if its data samples are names or hold `img_path`."""
    samples = batch.get("data_samples")
    samples = samples if isinstance(samples, list | tuple) else []
    names = [sample if isinstance(sample, str) else getattr(sample, "img_path", None) for sample in samples]
    return [str(name) for name in names if name is not None]


def _local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, any other as it is."""
    tensor = tensor.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _norm(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm of all values of some tensors, of a sharded one this process's part."""
    if not tensors:
        return torch.zeros(())
    norms = torch._foreach_norm([_local(tensor) for tensor in tensors])
    return torch.linalg.vector_norm(torch.stack([norm.float().to(norms[0].device) for norm in norms]))
