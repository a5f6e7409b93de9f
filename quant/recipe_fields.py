"""Whether the fields of a recipe are of their types: a YAML file may hold anything, and every mistake is one line."""

from __future__ import annotations

import dataclasses
import difflib
import math
import reprlib
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints

WORDS = {str: "a text", float: "a number", int: "a whole number", bool: "true or false", NoneType: "null"}


def check_fields(where: str, content: Any, section: type) -> None:
    """Raise ValueError unless `content` is a mapping of the section's keys to values of their types.

    Lists of other sections (a recipe's rules) and sections themselves are left to their own check.
    """
    allowed = [f.name for f in dataclasses.fields(section)]
    if not isinstance(content, dict):
        raise ValueError(f"{where} is {shown(content)}; expected a mapping with the keys {', '.join(allowed)}")
    unknown = [near(key, allowed) for key in content if key not in allowed]
    if unknown:
        raise ValueError(f"unknown {where} key {', '.join(unknown)}. Allowed: {', '.join(allowed)}")
    hints = get_type_hints(section)
    for key, value in content.items():
        types = get_args(hints[key]) if isinstance(hints[key], UnionType) else (hints[key],)
        if all(each in WORDS for each in types) and not any(_is_of(value, each) for each in types):
            wanted = " or ".join(WORDS[each] for each in types)
            raise ValueError(f"{where} {key} is {shown(value)}; expected {wanted}")


def _is_of(value: Any, kind: type) -> bool:
    """Return whether a YAML value is of a field's type; a whole number is a number, true and false are none."""
    if kind is not float:
        return type(value) is kind
    # 1e300: a whole number of YAML may be too large for a float
    return type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)


def check_choice(what: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError for a value that is none of those allowed."""
    if value not in allowed:
        raise ValueError(f"unknown {what} {near(value, list(allowed))}. Allowed: {', '.join(allowed)}")


def check_alpha(what: str, value: float | str, words: tuple[str, ...], otherwise: str) -> None:
    """Raise ValueError for a share that is neither 0 to 1 nor one of the words. Args: otherwise: what means none."""
    if isinstance(value, str):
        check_choice(what, value, words)
    elif isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"{what} is {value}; allowed: 0 to 1, 'search', or {otherwise} for none")


def check_percentile(what: str, value: float) -> None:
    """Raise ValueError for a share of |x| that no calibrator takes."""
    if not 50 < value <= 100:
        raise ValueError(f"{what} is {value}; allowed: above 50, up to 100")


def near(word: Any, allowed: list[str]) -> str:
    """Return the word quoted, with the nearest of those allowed."""
    close = difflib.get_close_matches(str(word), allowed, n=1, cutoff=0.5)
    return f"{shown(word)} (did you mean '{close[0]}'?)" if close else shown(word)


def shown(value: Any) -> str:
    """Return a value as an error shows it: quoted, cut, and on one line."""
    try:
        return reprlib.repr(value) if not isinstance(value, str) else repr(value if len(value) < 80 else value[:80])
    except ValueError:  # Python prints no whole number of more than 4,300 digits
        return "a huge number"
