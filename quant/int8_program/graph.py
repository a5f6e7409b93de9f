"""What the passes share: nodes with the shapes that they will have, constants, and a walk that tidies.

Nodes are typed Any in the passes: the type of a node's arguments is a union of a dozen, which tells nothing here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch.fx import GraphModule, Node

aten = torch.ops.aten
# Nodes that hand their first argument on, in another shape: rounding may as well come before as after them.
RESHAPES = frozenset({aten.view.default, aten.reshape.default, aten.unflatten.int, aten.flatten.using_ints,
                      aten._unsafe_view.default, aten.contiguous.default, aten.clone.default,
                      aten.squeeze.dim, aten.unsqueeze.default})  # fmt: skip
VIEWS = RESHAPES | {aten.transpose.int, aten.permute.default, aten.slice.Tensor, aten.expand.default, aten.roll.default}


class Editor:
    """Adds nodes to a graph module, each with its fake value, and holds new constants as buffers."""

    def __init__(self, module: GraphModule) -> None:
        self.module, self.graph = module, module.graph
        self._made: dict[Any, list[str]] = {}  # (type, shape) → names of constants

    def call(self, before: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
        """Return a new call before a node."""
        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, args, kwargs)
        values = torch.fx.map_arg((args, kwargs), lambda each: each.meta["val"])
        with enable_python_dispatcher():  # whose rules take free sizes: torch 2.11's own for a linear layer do not
            node.meta["val"] = target(*values[0], **values[1])
        return node

    def constant(self, before: Any, value: Tensor) -> Any:
        """Return a constant before a node; of no more than the module's own memory: `value` itself is held.

        One that is there already serves again: a layer that runs twelve times (ALBERT's) is joined twelve times.
        """
        alike = self._made.setdefault((value.dtype, value.shape), [])
        name = next((each for each in alike if torch.equal(getattr(self.module, each), value)), None)
        if name is None:
            name = f"int8kit_constant_{sum(map(len, self._made.values()))}"
            self.module.register_buffer(name, value)
            alike.append(name)
        with self.graph.inserting_before(before):
            node = self.graph.get_attr(name)
        mode = next(each.fake_mode for each in fake_values(self.graph.nodes))
        with mode:
            node.meta["val"] = torch.empty(value.shape, dtype=value.dtype)
        return node

    def tensor(self, node: Any) -> Tensor:
        """Return the constant that a get_attr node reads."""
        found: Any = self.module
        for part in str(node.target).split("."):
            found = getattr(found, part)
        return found

    def replace(self, old: Any, new: Any) -> None:
        """Let every reader of `old` read `new`, and drop `old`."""
        old.replace_all_uses_with(new)
        self.graph.erase_node(old)

    def sweep(self) -> None:
        """Drop calls and constants that nothing reads, but for those that write into a tensor."""
        for node in reversed(list(self.graph.nodes)):
            schema = getattr(node.target, "_schema", None)
            if schema is not None and schema.is_mutable:
                continue
            if not node.users and node.op in ("call_function", "get_attr", "call_module"):
                self.graph.erase_node(node)

    def drop_unused(self) -> None:
        """Drop the weights and constants that no node reads, so that the program does not carry them."""
        used = {str(node.target) for node in self.graph.nodes if node.op == "get_attr"}
        for path, owner in list(self.module.named_modules()):
            for name in [*owner._parameters, *owner._buffers]:
                if f"{path}.{name}".lstrip(".") not in used:
                    delattr(owner, name)


def fake_values(nodes: Any) -> Iterator[Any]:
    """Yield the fake tensors of nodes."""
    for node in nodes:
        value = node.meta.get("val")
        if isinstance(value, torch._subclasses.FakeTensor):
            yield value


def calls(module: GraphModule, *targets: Any) -> list[Any]:
    """Return the calls of these targets, in order (of all where none is named); later erasures do not disturb."""
    return [n for n in module.graph.nodes if n.op == "call_function" and (not targets or n.target in targets)]


def is_call(node: Any, *targets: Any) -> bool:
    """Return whether an argument is a call of one of these targets."""
    return isinstance(node, Node) and node.op == "call_function" and node.target in targets


def sole_reader(node: Any) -> Any:
    """Return the one node that reads this one, once, else None."""
    if len(node.users) != 1:
        return None
    reader = next(iter(node.users))
    uses: list[Any] = []
    torch.fx.map_arg((reader.args, reader.kwargs), lambda each: uses.append(each) if each is node else None)
    return reader if len(uses) == 1 and reader.op == "call_function" else None


def shape_of(node: Any) -> tuple[Any, ...]:
    """Return the shape that a node's tensor has, symbols included."""
    return tuple(node.meta["val"].shape)


def have_same_shape(first: Any, second: Any) -> bool:
    """Return whether two nodes have one shape, whatever the symbols in it become."""
    if not (isinstance(first, Node) and isinstance(second, Node)):
        return False
    a, b = first.meta.get("val"), second.meta.get("val")
    return torch.is_tensor(a) and torch.is_tensor(b) and [str(n) for n in a.shape] == [str(n) for n in b.shape]


def tidy(editor: Editor) -> None:
    """Drop what does nothing in evaluation: dropout, casts to a tensor's own type, checks, nodes that nothing reads."""
    for node in calls(editor.module):
        if node.target is aten._assert_tensor_metadata.default:
            editor.graph.erase_node(node)
        elif is_call(node, aten.dropout.default) and node.args[2] is False:
            editor.replace(node, node.args[0])
        elif is_call(node, aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten._to_copy.default):
            _drop_cast(editor, node)
        elif is_call(node, aten.alias.default, aten.detach.default, aten.detach_.default, aten.lift_fresh_copy.default):
            editor.replace(node, node.args[0])
    editor.sweep()


def _drop_cast(editor: Editor, node: Any) -> None:
    """Drop a cast that changes no type; no program moves a tensor to another device."""
    source: Any = node.args[0]
    if source.meta["val"].dtype == node.meta["val"].dtype:
        editor.replace(node, source)
    elif node.target is not aten.to.dtype:
        editor.replace(node, editor.call(node, aten.to.dtype, source, node.meta["val"].dtype))
