"""Which weights a model multiplies by itself, outside layers that take quantizers (fused experts, XLNet's q and k)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

PRODUCTS = frozenset({
    "linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "einsum", "tensordot",
    "grouped_mm", "_grouped_mm", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
})  # fmt: skip


class WatchProducts(TorchFunctionMode):
    """While it is entered, notes in `found` the names of the bare weights that products read, in order.

    A bare weight is a parameter of two axes or more whose module is none of `layers`. A view of one (an expert's
    slice) counts as the weight itself; a copy is not recognized.

    Args:
        layers: names of the modules that can carry quantizers.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str]) -> None:
        super().__init__()
        self.found: dict[str, None] = {}
        covered = {id(p) for name in layers for p in model.get_submodule(name).parameters(recurse=False)}
        self._names = {
            p.untyped_storage().data_ptr(): name for name, p in model.named_parameters()
            if p.dim() >= 2 and id(p) not in covered and p.untyped_storage().data_ptr()  # 0: on the meta device
        }  # fmt: skip

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return what the function returns."""
        if getattr(func, "__name__", "") in PRODUCTS:
            for tensor in _tensors((*args, *(kwargs or {}).values())):
                name = self._names.get(tensor.untyped_storage().data_ptr())
                if name is not None:
                    self.found[name] = None
        return func(*args, **(kwargs or {}))


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
