"""Loading weights into models: every tensor matched, or listed as new for a stated reason, or the run stops."""

from torch import Tensor, nn

from ..arm import ARMTrunk
from .accounting import Accounting, misfit
from .convert import detect_kind, fit
from .files import CheckpointError

# beginnings of names that a file need not have
MAY_START_FRESH = {
    "out_norms.": "output norms, learned with the dense task",
    "norm.": "learned in finetuning",
    "head.": "learned in finetuning",
    "cls_token": "class token, learned in finetuning",
}


def fitted(model: ARMTrunk, state: dict[str, Tensor], where: str) -> tuple[dict[str, Tensor], Accounting]:
    """The tensors of a checkpoint of any kind in the model's shapes; see `arm_backbone.convert.fit`.

    Args:
        where: name of the file, for messages.

    Returns:
        tensors by the model's names, and the accounting with what starts fresh as `new`.

    Raises:
        CheckpointError: when a tensor of the file or of the model is left over, or a shape differs.
    """
    target = model.state_dict()
    try:
        state, accounting = fit(state, model)
    except CheckpointError as error:
        raise CheckpointError(f"{where} does not fit the model: {error}") from None
    for name in target.keys() - state.keys():
        reason = next((reason for start, reason in MAY_START_FRESH.items() if name.startswith(start)), None)
        if reason is not None:
            accounting.new[name] = reason
    require_fit(target, state, where, accounting.new)
    return state, accounting


def load_trunk(model: ARMTrunk, state: dict[str, Tensor], where: str) -> Accounting:
    """Start a backbone or classifier from a checkpoint of any kind; arguments and errors as `fitted`."""
    state, accounting = fitted(model, state, where)
    model.load_state_dict(state, strict=False)
    return accounting


def load_model(model: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load a whole model, every tensor matched.

    Raises:
        CheckpointError: when one is missing, left over or of another shape.
    """
    require_fit(model.state_dict(), state, where)
    model.load_state_dict(state)


def require_fit(target: dict[str, Tensor], state: dict[str, Tensor], where: str, may_miss: dict | None = None) -> None:
    shapes = [{name: tensor.shape for name, tensor in tensors.items()} for tensors in (target, state)]
    problem = misfit(*shapes, may_miss or {})
    if problem:
        raise CheckpointError(f"{where} does not fit the model: {problem}. {_remedy(state)}")


def _remedy(state: dict[str, Tensor]) -> str:
    try:
        kind = detect_kind(state)
    except CheckpointError:
        return "It holds no ARM weights: give a checkpoint of this model."
    if kind != "dense":
        return (
            f"It is a {kind} checkpoint: to start a training from it, give it as init_cfg.checkpoint of the backbone "
            "or classifier (same architecture); testing needs the trained model."
        )
    return "Give the configuration that it was trained with (architecture, classes, heads)."
