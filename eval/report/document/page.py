"""A document as one HTML file: its style, script and plots inside, nothing from anywhere else."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt

from eval.report.document.blocks import Block, Document, Figure, Section
from eval.report.document.svg import inline_svg
from eval.report.figure_style import FAINT, INK
from eval.report.plots import Plot

TEMPLATES = Path(__file__).parents[1] / "templates"
COLORS = {INK: "var(--ink)", FAINT: "var(--line)"}
LONG_CELL = 60  # characters from which a cell is prose and wraps


def render_page(document: Document, plots: Mapping[str, Plot]) -> str:
    """Return the page; figures whose plot is not given are left out."""
    shown = {name: _svgs(name, plot, caption) for name, caption in _captions(document.sections).items()
             if (plot := plots.get(name)) is not None}  # fmt: skip
    style, script = (TEMPLATES.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return environment().get_template("page.html.j2").render(
        document=document, title=plain(document.title), plots=shown, style=style, script=script,
        lead=next((each for each in _figures(document.sections) if each.leads and each.name in shown), None),
        policy=f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
               "base-uri 'none'; form-action 'none'",
    )  # fmt: skip


@cache
def environment() -> Environment:
    """Return the templates, whatever they are given escaped; Markdown becomes HTML, and HTML in it text."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    markdown.add_render_rule("table_open", _table_open)
    markdown.add_render_rule("table_close", _table_close)
    found.filters["markdown"] = markdown.render
    found.filters["inline"] = markdown.renderInline
    found.filters["plain"] = plain
    found.globals["long_cell"] = LONG_CELL
    return found


def _table_open(*_: object) -> str:
    return '<div class="scroll" tabindex="0" role="region" aria-label="table"><table>\n'


def _table_close(*_: object) -> str:
    return "</table></div>\n"


def plain(text: str) -> str:
    """Return an inline Markdown text without its marks."""
    tokens = MarkdownIt("commonmark", {"html": False}).parseInline(text)
    return "".join(each.content for token in tokens for each in token.children or [])


def _captions(blocks: tuple[Block, ...] | tuple[Section, ...]) -> dict[str, str]:
    return {each.name: each.caption for each in _figures(blocks)}


def _figures(blocks: tuple[Block, ...] | tuple[Section, ...]) -> list[Figure]:
    """Return the figures among blocks, at any depth."""
    found: list[Figure] = []
    for block in blocks:
        if isinstance(block, Section):
            found += _figures(block.blocks)
        elif isinstance(block, Figure):
            found.append(block)
    return found


def _svgs(name: str, plot: Plot, caption: str) -> dict[str, str]:
    """Return a plot for wide and for narrow screens."""
    label = plain(caption)
    return {screen: inline_svg(svg, f"{name}-{screen}", label, COLORS)
            for screen, svg in (("wide", plot.svg), ("narrow", plot.narrow_svg))}  # fmt: skip


def _digest(text: str) -> str:
    """Return what a content security policy calls a style or a script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def without_plots(page: str) -> str:
    """Return a page without its plots: what --check compares."""
    return re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def write_svgs(plot: Plot, path: Path) -> None:
    """Write a plot's SVGs beside its PNG, `path` with .svg and .narrow.svg: another folder's page can show it too."""
    for suffix, svg in (("svg", plot.svg), ("narrow.svg", plot.narrow_svg)):
        write_whole(path.with_name(f"{path.name}.{suffix}"), svg.encode())


def read_plot(path: Path) -> Plot | None:
    """Return the plot whose PNG and SVGs stand at `path`; None where they are not all there."""
    png, svg, narrow = (path.with_name(f"{path.name}.{suffix}") for suffix in ("png", "svg", "narrow.svg"))
    if not all(each.is_file() for each in (png, svg, narrow)):
        return None
    return Plot(svg.read_text(encoding="utf-8"), png.read_bytes(), narrow.read_text(encoding="utf-8"))
