"""Words and numbers: the texts of a language, Markdown tables, and one way to print each kind of figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

TEXTS = Path(__file__).parent / "texts"
LANGUAGES = ("en", "zh")
NOTHING = "-"


class Texts:
    """The sentences of one language."""

    def __init__(self, lang: str) -> None:
        self.lang = lang
        self._texts: dict[str, str] = yaml.safe_load((TEXTS / f"{lang}.yaml").read_text(encoding="utf-8"))

    def __call__(self, key: str, /, **values: Any) -> str:
        """Return a sentence with its values put in."""
        return self._texts[key].format(**values)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Return a Markdown table as lines; the first `left` columns are aligned left, the others right."""
    align = ["---" if i < left else "---:" for i in range(len(headers))]
    return [_line(headers), _line(align), *(_line(row) for row in rows), ""]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def percent(value: float | None) -> str:
    """Return a share as percent with two decimals."""
    return NOTHING if value is None else f"{100 * value:.2f}"


def milliseconds(value: float | None) -> str:
    """Return milliseconds with three digits that count."""
    if value is None:
        return NOTHING
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def ratio(value: float | None) -> str:
    """Return a ratio with two decimals."""
    return NOTHING if value is None else f"{value:.2f}"


def small(value: float | None) -> str:
    """Return an error with three digits that count."""
    return NOTHING if value is None else "0" if value == 0 else f"{value:.3g}"


def megabytes(value: int | None) -> str:
    """Return bytes as MB."""
    return NOTHING if value is None else f"{value / 1e6:.1f}"


def interval(middle: str, low: str, high: str, to: str = "-") -> str:
    """Return e.g. "1.93 (1.90-1.97)"; where ends may be negative, `to` is a word."""
    return f"{middle} ({low}{to}{high})"


def count(value: int | None) -> str:
    """Return a count."""
    return NOTHING if value is None else str(value)


def first_names(names: Sequence[str], most: int = 4) -> str:
    """Return the first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" + {len(names) - most}" if len(names) > most else "")
