"""What a report is made of. All texts are Markdown: of one line, and of any number of lines in `Prose`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from eval.report.writing import NOTHING


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        value: what its column is sorted by; without one it is sorted by its text, and among numbers stands last.
        row: the line of results.jsonl that the cell leads to.
    """

    text: str
    value: float | None = None
    row: int | None = None


@dataclass(frozen=True)
class Prose:
    """Paragraphs.

    Attributes:
        rows: the lines of results.jsonl it is of, named at its end.
        is_note: how to read a table beside it, in small print.
    """

    kind: ClassVar[str] = "prose"
    text: str
    rows: tuple[int, ...] = ()
    is_note: bool = False


@dataclass(frozen=True)
class Items:
    """A list with bullets."""

    kind: ClassVar[str] = "items"
    items: tuple[Prose, ...]


@dataclass(frozen=True)
class Table:
    """A table, its first `left` columns aligned left.

    Attributes:
        marked: the numbers of the rows, from 0, that stand out.
        is_row_list: whether its rows are the lines of results.jsonl, which all others lead to.
    """

    kind: ClassVar[str] = "table"
    headers: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    left: int = 1
    marked: frozenset[int] = frozenset()
    is_row_list: bool = False

    def is_numeric(self, column: int) -> bool:
        """Return whether a column is sorted by numbers: some cell has one."""
        return any(row[column].value is not None for row in self.rows)


@dataclass(frozen=True)
class Figure:
    """A plot by its name; one that leads stands above all sections of a page."""

    kind: ClassVar[str] = "figure"
    name: str
    caption: str
    leads: bool = False


@dataclass(frozen=True)
class Code:
    """Commands or code."""

    kind: ClassVar[str] = "code"
    text: str
    language: str = ""


@dataclass(frozen=True)
class Section:
    """A titled part; a section among its blocks is one level deeper.

    Attributes:
        name: its id in a page.
        is_folded: whether a page shows it only when asked.
    """

    kind: ClassVar[str] = "section"
    name: str
    title: str
    blocks: tuple[Block, ...]
    is_folded: bool = False


Block: TypeAlias = Prose | Items | Table | Figure | Code | Section


@dataclass(frozen=True)
class Card:
    """One answer in large letters, on the page only.

    Attributes:
        question: what it answers. answer: the answer. lines: what it rests on.
        tone: "good", "unsure" or "bad".
    """

    question: str
    answer: str
    lines: tuple[str, ...] = ()
    tone: str = "good"


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    lead: tuple[Block, ...]
    sections: tuple[Section, ...]
    cards: tuple[Card, ...] = ()
    lang: str = "en"
    contents: str = "Contents"


def cell(form: Callable[[Any], str], value: float | None) -> Cell:
    """Return a cell of a figure, printed by one of `writing`'s ways and sorted by the figure itself."""
    return Cell(NOTHING) if value is None else Cell(form(value), float(value))


def row_cell(number: int) -> Cell:
    """Return the cell that names, and leads to, a line of results.jsonl."""
    return Cell(f"#{number}", number, number)
