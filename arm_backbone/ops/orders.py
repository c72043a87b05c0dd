"""Token orders that kernels can trust, because they are validated once, on construction.

Legend: B batch, K scan directions, L tokens.
"""

import torch
from torch import Tensor

from .library import define_op


class ScanOrders:
    """Orders in which K directions visit L tokens: `tensor[k, t]` is the token that direction k visits at step t.

    Kernels read and write memory at these indices: an index out of range would corrupt memory, a missing index would
    leave results undefined. Operators validate a plain tensor at each call; this class validates it once, on the CPU,
    and again if the tensor was changed since; a compiled function does not see such changes.

    Args:
        orders: (K, L) int64, or (B, K, L) if images differ; each row is a permutation of 0 to L - 1.

    Attributes:
        tensor: (K, L) or (B, K, L) int64, a copy.

    Raises:
        ValueError: for another shape or dtype, or for a row that is not a permutation.
    """

    __slots__ = ("_tensor", "_version")

    def __init__(self, orders: Tensor) -> None:
        _check_kind(orders)
        self._keep(_validated(orders))

    @classmethod
    def trusted(cls, tensor: Tensor) -> "ScanOrders":
        """Orders that are permutations by construction: only shape and dtype are checked.

        Raises:
            ValueError: for another shape or dtype.
        """
        _check_kind(tensor)
        orders = cls.__new__(cls)
        orders._keep(tensor)
        return orders

    def _keep(self, tensor: Tensor) -> None:
        self._tensor, self._version = tensor, _version(tensor)

    @property
    def tensor(self) -> Tensor:
        return self._tensor

    def validated(self) -> Tensor:
        """The tensor, validated again if it was changed in place.

        Raises:
            ValueError: if a row is not a permutation any more.
        """
        if torch.compiler.is_compiling():  # changes are not counted there, and validating waits for the GPU
            return self._tensor
        if self._version != _version(self._tensor):
            self._keep(_validated(self._tensor))
        return self._tensor

    def __getitem__(self, directions: slice) -> "ScanOrders":
        """The orders of some directions."""
        return ScanOrders.trusted(self.validated()[..., directions, :])

    def __len__(self) -> int:
        return self._tensor.shape[-2]

    def __repr__(self) -> str:
        *batch, directions, length = self._tensor.shape
        images = f"{batch[0]} images, " if batch else ""
        return f"ScanOrders({images}{directions} directions, {length} tokens, {self._tensor.device})"


def are_per_image(orders: ScanOrders | Tensor) -> bool:
    """Whether orders are (B, K, L) rather than (K, L)."""
    return getattr(getattr(orders, "tensor", orders), "ndim", 0) == 3


def order_tensor(orders: ScanOrders | Tensor, directions: int, tokens: Tensor) -> Tensor:
    """The (K, L) tensor of `orders` for K directions of tokens (..., L, D); a plain tensor is validated first.

    Raises:
        ValueError: for another type, shape or device, or if a plain tensor does not hold permutations.
    """
    return _usable(orders, (directions, tokens.shape[-2]), tokens)


def image_orders(orders: ScanOrders | Tensor, directions: int, tokens: Tensor) -> Tensor:
    """As `order_tensor`, but (B, K, L) for tokens (B, ..., L, D)."""
    return _usable(orders, (tokens.shape[0], directions, tokens.shape[-2]), tokens)


def _usable(orders: ScanOrders | Tensor, expected: tuple[int, ...], tokens: Tensor) -> Tensor:
    trusted = type(orders) is ScanOrders  # a subclass may hold anything
    tensor = orders.validated() if trusted else getattr(orders, "tensor", orders)
    if not trusted:
        _check_kind(tensor)
    _check_shape(tensor, expected, tokens)
    return tensor if trusted else _validated(tensor)


def check_fit(orders: Tensor, directions: int, tokens: Tensor) -> None:
    """Check that orders (K, L) are for K directions of tokens (..., L, D).

    Raises:
        ValueError: for another shape or device.
    """
    _check_shape(orders, (directions, tokens.shape[-2]), tokens)


def _check_shape(orders: Tensor, expected: tuple[int, ...], tokens: Tensor) -> None:
    if orders.shape != expected:
        raise ValueError(
            f"orders has shape {tuple(orders.shape)}; with tokens {tuple(tokens.shape)} and {expected[-2]} directions "
            f"it must be {expected}"
        )
    if orders.device != tokens.device:
        raise ValueError(f"orders is on {orders.device}, but the tokens on {tokens.device}; move both to one device")


def _version(tensor: Tensor) -> int | None:
    """Number of changes of a tensor in place; None where PyTorch does not count them."""
    return None if torch.compiler.is_compiling() or tensor.is_inference() else tensor._version


def _check_kind(orders: Tensor) -> None:
    if not isinstance(orders, Tensor):
        raise ValueError(f"orders must be a tensor or ScanOrders, not {type(orders).__name__}; give torch.tensor(...)")
    if orders.ndim not in (2, 3):
        raise ValueError(f"orders must be (K, L) or (B, K, L), not {tuple(orders.shape)}")
    if orders.dtype != torch.int64:
        raise ValueError(f"orders must be int64, not {orders.dtype}")
    if orders.layout != torch.strided:
        raise ValueError(f"orders must be a dense tensor, not {orders.layout}; give orders.to_dense()")


def _validate(orders: Tensor) -> Tensor:
    on_cpu = orders.cpu()
    length = on_cpu.shape[-1]
    wrong = (on_cpu.sort(-1).values != torch.arange(length, device="cpu")).any(-1)
    if wrong.any():
        raise ValueError(
            f"orders[{', '.join(map(str, wrong.nonzero()[0].tolist()))}] is not a permutation of the {length} tokens: "
            f"each of 0 to {length - 1} must occur once"
        )
    return orders.clone(memory_format=torch.contiguous_format)


# an operator, so that torch.compile and torch.export keep the check
_validated = define_op("validated_orders", _validate, torch.empty_like)
