"""What a backend says of itself, readable without its runtime, and the options that only its own builder has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

FLAG = "flag"  # the key of a field's metadata


@dataclass(frozen=True)
class OwnOptions:
    """Base of a backend's own options: a frozen dataclass whose fields are made by `option`.

    Each field is a flag of build_engine.py and an entry of the manifest's `options`. Its type is one of `int | None`,
    `str | None`, `bool` and `tuple[str, ...]`; None, false or empty asks for nothing.
    """

    def check(self, backend: str) -> None:
        """Raise UsageError for values that the builder cannot take, or that this one of its backends has not."""


@dataclass(frozen=True)
class Flag:
    """How one option is told on a command line.

    Attributes:
        help: what --help says.
        file: what lies in the file that the option names, such as "the timing cache": it is named anew at a rebuild,
            since a manifest may come from another machine. None where the option names no file.
    """

    help: str
    file: str | None = None


def option(default: Any, help: str, file: str | None = None) -> Any:
    """Return the dataclass field of one own option."""
    return field(default=default, metadata={FLAG: Flag(help, file)})


@dataclass(frozen=True)
class BackendInfo:
    """The declaration of a backend: all that others decide by.

    Attributes:
        name: as commands, manifests and rows call it; the key of its line in `BACKENDS`.
        title: as a reader knows it.
        target: the export target whose files it is built from (a key of `engine.passes.qdq.TARGETS`).
        packages: the distributions its runtime may come from; the first that is installed counts.
        precisions: what everything that is not INT8 may be computed in, the default first.
        saturation_mend: what "avoid" does on a CPU without VNNI; None where sums cannot saturate.
        uses_gpu: its engines are bound to a GPU (or none) and not to the processor; files for it are judged as written,
            bug reports do not run them, and a build times kernels, so that no other goes on beside it.
        is_thread_safe: one runner serves many threads; of others each client gets its own.
        wants_static_shapes: an engine for each shape is faster or must be; else one serves all shapes.
        are_products_measured: an engine tells which products it runs in INT8; else the file's plan is all there is.
        options: the type of the options that only its builder has.
    """

    name: str
    title: str
    target: str
    packages: tuple[str, ...]
    precisions: tuple[str, ...] = ("fp32",)
    saturation_mend: str | None = None
    uses_gpu: bool = False
    is_thread_safe: bool = False
    wants_static_shapes: bool = False
    are_products_measured: bool = True
    options: type[OwnOptions] | None = None
