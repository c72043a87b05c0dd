"""Loads weights into models: a tensor that is neither matched nor new or dropped for a stated reason is an error."""

from torch import Tensor, nn

from ..arm import ARMTrunk
from ..vmamba import VMambaTrunk
from .accounting import Accounting, describe_mismatch, describe_values
from .convert import Weights, detect_kind
from .files import CheckpointError
from .official import encoder_of
from .vmamba import fit_vmamba

# prefixes of the tensors that a file may lack
MAY_START_FRESH = {
    "out_norms.": "output norms, learned with the dense task",
    "norm.": "learned in finetuning",
    "head.": "learned in finetuning",
    "attn_pool.": "attention pooling, learned in finetuning",
    "cls_token": "class token, learned in finetuning",
}


def fit_state(
    model: ARMTrunk | VMambaTrunk, state: dict[str, Tensor], where: str
) -> tuple[dict[str, Tensor], Accounting]:
    """Adapt a checkpoint of any kind to the names and shapes of a model.

    One scan is copied to the model's number of scans; position embedding, patch size and image channels are adapted.
    Decoders, heads and norms that the model does not have are dropped, as is a classification head for another number
    of classes.

    Args:
        model: trunk, backbone or classifier; it is not changed.
        state: tensors by name.
        where: name of the file, for messages.

    Returns:
        tensors by the model's names, and the accounting, whose `new` lists the tensors that keep their initial values.

    Raises:
        CheckpointError: if a tensor of the file or of the model has no match, or if shapes differ.
    """
    target = model.state_dict()
    try:
        kind, encoder = detect_kind(state), encoder_of(state)
        if encoder != model.encoder_name:
            raise CheckpointError(
                f"it holds {encoder} ({kind}), but the model is {model.encoder_name}; "
                f"give a checkpoint of {model.encoder_name}, or build {encoder}"
            )
        fit = fit_vmamba if isinstance(model, VMambaTrunk) else _fit_trunk
        result, accounting = fit(model, state)
    except CheckpointError as error:
        raise CheckpointError(f"{where} does not fit the model: {error}") from None
    for name in target.keys() - result.keys():
        reason = next((reason for prefix, reason in MAY_START_FRESH.items() if name.startswith(prefix)), None)
        if reason is not None:
            accounting.new[name] = reason
    remedy = "Build the model as the file's was (arch, patch size, in_chans), or give another checkpoint."
    require_match(target, result, where, accounting.new, remedy)
    return result, accounting


def _fit_trunk(model: ARMTrunk, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], Accounting]:
    """`fit_state` for models with ARM's trunk, without the judgement of what is missing."""
    target, weights = model.state_dict(), Weights(state, model.cls_token_position or "middle")
    weights.fit_scans(model.scans)
    weights.fit_grid(model.grid_size)
    weights.fit_patch_size(model.patch_size)
    weights.fit_in_chans(model.patch_embed.proj.in_channels)
    if "cls_pos_embed" in target:
        weights.add_cls_position()
    elif "cls_pos_embed" in weights.trunk:
        raise CheckpointError(
            "it has a class token, and the model has none (cls_token=None); drop it with tools/convert_checkpoint.py "
            "--to backbone --cls-token none, or set the model's cls_token"
        )
    rest = weights.keep([name for name in weights.rest if name in target])
    for name in ("head.weight", "head.bias"):
        if name in rest and len(rest[name]) != len(target[name]):
            weights.drop(name, f"for {len(rest[name])} classes, the model has {len(target[name])}")
            del rest[name]
    return weights.trunk | rest, weights.accounting


def load_trunk(model: ARMTrunk | VMambaTrunk, state: dict[str, Tensor], where: str) -> Accounting:
    """Initialise a trunk, backbone or classifier from a checkpoint of any kind, adapted as `fit_state` describes.

    Arguments and errors are those of `fit_state`; the model is unchanged if there is an error.
    """
    state, accounting = fit_state(model, state, where)
    model.load_state_dict(state, strict=False)
    return accounting


def load_exact(model: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load a complete model; file and model must have the same tensors.

    Args:
        state: by the model's names, or by others that it knows (see `named_as_in`).
        where: name of the file, for messages.

    Raises:
        CheckpointError: if a tensor is missing, unknown to the model or has another shape; the model is unchanged.
    """
    state = named_as_in(model, state)
    require_match(model.state_dict(), state, where)
    model.load_state_dict(state)


def named_as_in(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by a model's names, if it has a method `named_as_here`, as a timm model has for timm's names."""
    rename = getattr(model, "named_as_here", None)
    return state if rename is None else rename(state)


def require_match(
    target: dict[str, Tensor],
    state: dict[str, Tensor],
    where: str,
    may_miss: dict | None = None,
    remedy: str | None = None,
) -> None:
    """Check that a file has the tensors of a model, in the same shapes, of the same type and with finite values.

    Args:
        may_miss: names that the file may lack.
        remedy: what to do about tensors that do not match; None: what the kinds of file and model suggest.

    Raises:
        CheckpointError: names the tensors that are missing, unknown, of another shape or type, or not finite, and the
            remedy.
    """
    shapes = [{name: tensor.shape for name, tensor in tensors.items()} for tensors in (target, state)]
    problem = describe_mismatch(*shapes, may_miss or {})
    if problem:
        raise CheckpointError(f"{where} does not fit the model: {problem}. {remedy or _remedy(target, state)}")
    problem = describe_values(target, state)
    if problem:
        raise CheckpointError(f"{where} cannot be used: {problem}. Give an earlier checkpoint, or save it again.")


def _remedy(target: dict[str, Tensor], state: dict[str, Tensor]) -> str:
    try:
        kind = detect_kind(state)
    except CheckpointError:
        return "Give a checkpoint of this model."
    try:
        detect_kind(target)
    except CheckpointError:
        return f"It holds {encoder_of(state)} ({kind}): give a checkpoint of this model."
    if encoder_of(state) != encoder_of(target):
        return (
            f"It holds {encoder_of(state)} ({kind}), but the model is {encoder_of(target)}: give a checkpoint of "
            f"{encoder_of(target)}, or build {encoder_of(state)}."
        )
    if kind != "dense":
        return (
            f"It is a {kind} checkpoint: to start training from it, set it as init_cfg.checkpoint of the backbone or "
            "classifier (same architecture); testing needs the trained model."
        )
    return "Give the configuration that it was trained with (architecture, classes, heads)."
