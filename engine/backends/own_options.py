"""From flags, and from a manifest's JSON, to the options that only one backend's builder has."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import Field, fields, replace
from typing import Any, get_type_hints

from engine.backend import backend_infos, get_backend
from engine.backends.info import FLAG, Flag, OwnOptions
from engine.cli import CommandParser, UsageError, did_you_mean

TYPES: dict[Any, type] = {int | None: int, str | None: str, bool: bool, tuple[str, ...]: list}  # of a field, in JSON


def option_types() -> dict[type[OwnOptions], list[str]]:
    """Return every type of own options with the backends that have it."""
    types: dict[type[OwnOptions], list[str]] = {}
    for name, info in backend_infos().items():
        if info.options is not None:
            types.setdefault(info.options, []).append(name)
    return types


def json_types(kind: type[OwnOptions]) -> dict[str, type]:
    """Return the type that each field of own options has in JSON. Raises: TypeError: a field of none of TYPES."""
    hints = get_type_hints(kind)
    for each in fields(kind):
        if hints[each.name] not in TYPES:
            raise TypeError(f"{kind.__name__}.{each.name}: own options are of {', '.join(map(str, TYPES))}")
    return {each.name: TYPES[hints[each.name]] for each in fields(kind)}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every backend's own options, a group for each type."""
    for kind, backends in option_types().items():
        group = parser.add_argument_group(f"only --backend {' and '.join(backends)}")
        types = json_types(kind)
        for each in fields(kind):
            type_ = types[each.name]
            settings: dict[str, Any] = {"help": _flag_of(each).help}
            if type_ is bool:
                settings["action"] = "store_true"
            elif type_ is list:
                settings |= {"nargs": "+", "default": []}
            else:
                settings["type"] = type_
            group.add_argument(_word(each), **settings)


def own_from_flags(arguments: argparse.Namespace, backend: str) -> OwnOptions | None:
    """Return the own options given on a command line, None for a backend that has none.

    Raises: UsageError: no such backend, a flag that it has not, or a value out of range.
    """
    check_flags(arguments, backend)
    kind = _type_of(backend)
    return None if kind is None else _checked(_given(kind, arguments), backend)


def own_from_words(flag: str, words: str, backend: str) -> OwnOptions | None:
    """Return a backend's own options from one string of flags, that of `flag`; other backends' own are not for it.

    Raises: UsageError: a value out of range. An unknown flag ends the program with its near matches.
    """
    kind = _type_of(backend)
    if kind is None:
        return None
    parser = CommandParser(flag, "")
    add_flags(parser)
    return _checked(_given(kind, parser.parse_args(shlex.split(words))), backend)


def own_from_json(content: Mapping[str, Any], backend: str, where: str) -> OwnOptions | None:
    """Return the own options that the manifest `where` holds, None for a backend that has none.

    Raises: ValueError: an option that is not known here, or of another type; UsageError: a value out of range.
    """
    kind = _type_of(backend)
    known = {} if kind is None else json_types(kind)
    wrong = []
    for name, value in content.items():
        if name not in known:
            wrong.append(f"{name}, which is no option here" + did_you_mean(name, known, " ({})"))
        elif value is not None and type(value) is not known[name]:
            wrong.append(f"{name} {value!r}, which is no {known[name].__name__}")
    if wrong:
        raise ValueError(
            f"{where} was built with {'; '.join(wrong)}. Rebuild with the version that wrote it, or name the options "
            f"anew: --onnx, --backend {backend}, ..."
        )
    values: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in content.items()}
    return None if kind is None else _checked(kind(**values), backend)


def own_as_json(options: OwnOptions) -> dict[str, Any]:
    """Return what a manifest keeps of own options; `own_from_json` reads it."""
    return {name: list(x) if isinstance(x, tuple) else x for name, x in vars(options).items()}


def given_flags(options: OwnOptions) -> list[str]:
    """Return the flags of the options that are not the builder's own defaults."""
    return [_word(each) for each in fields(options) if getattr(options, each.name) != each.default]


def check_flags(arguments: argparse.Namespace, backend: str) -> None:
    """Raise UsageError for flags of own options that another backend has and this one has not."""
    own = _type_of(backend)
    for kind, backends in option_types().items():
        if kind is not own and (changed := given_flags(_given(kind, arguments))):
            raise UsageError(f"{', '.join(changed)} is only for --backend {' and '.join(backends)}, not {backend}")


def file_options() -> list[str]:
    """Return the names of all own options that name a file."""
    return [each.name for kind in option_types() for each in fields(kind) if _flag_of(each).file is not None]


def with_files_of(
    options: OwnOptions | None, arguments: argparse.Namespace, backend: str
) -> tuple[OwnOptions | None, list[str]]:
    """Return the options of an earlier build with the files that this command line names instead of those of then, and
    a note for each of those that is left alone.

    Raises: UsageError: a file that the backend has no option for.
    """
    check_flags(arguments, backend)
    if options is None:
        return None, []
    notes = []
    for each in fields(options):
        what, first, now = _flag_of(each).file, getattr(options, each.name), getattr(arguments, each.name)
        if what is None:
            continue
        if first and not now:
            notes.append(f"{first}, {what} of the first build, is left alone; {_word(each)} names one to use")
        options = replace(options, **{each.name: now})
    return _checked(options, backend), notes


def _type_of(backend: str) -> type[OwnOptions] | None:
    try:
        return get_backend(backend).info.options
    except ValueError as error:
        raise UsageError(str(error)) from None


def _given(kind: type[OwnOptions], arguments: argparse.Namespace) -> OwnOptions:
    values = {each.name: getattr(arguments, each.name) for each in fields(kind)}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _checked(options: OwnOptions, backend: str) -> OwnOptions:
    options.check(backend)
    return options


def _flag_of(each: Field[Any]) -> Flag:
    flag: Flag = each.metadata[FLAG]
    return flag


def _word(each: Field[Any]) -> str:
    return f"--{each.name.replace('_', '-')}"
