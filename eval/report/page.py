"""From report.md to report.html: one file with its style and plots inside, light and dark."""

from __future__ import annotations

import html
import os
import re
from pathlib import Path

from markdown_it import MarkdownIt

from eval.report.plots import Plot

STYLE = Path(__file__).parent / "page.css"
LONG_CELL = 60  # characters from which a cell is prose and wraps


def render_page(markdown: str, plots: dict[str, Plot], lang: str) -> str:
    """Return the whole page of a report's Markdown; references to plots become the plots themselves."""
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    body = re.sub(r"<p>(?:<img[^>]*>)</p>", lambda match: _figure(match.group(0), plots), body)
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    body = re.sub(rf"<td([^>]*)>([^<]{{{LONG_CELL},}})</td>", r'<td class="text"\1>\2</td>', body)
    body = _link_rows(body)
    title = re.search(r"<h1>(.*?)</h1>", body, flags=re.DOTALL)
    name = html.escape(re.sub(r"<[^>]*>", "", title.group(1))) if title else "int8kit"
    return (
        f'<!doctype html>\n<html lang="{lang}">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{html.unescape(name)}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n"
        f"<body>\n{body}</body>\n</html>\n"
    )


def _figure(image: str, plots: dict[str, Plot]) -> str:
    """Return a figure with its plot inside; the caption is the image's alternative text."""
    source, caption = (re.search(pattern, image) for pattern in (r'src="plots/(\w+)\.png"', r'alt="([^"]*)"'))
    if source is None or caption is None:
        return image
    label = re.sub(r"\*\*|`", "", caption.group(1))
    name, plot = source.group(1), plots[source.group(1)]
    shown = ""
    for screen, svg in (("wide", plot.svg), ("narrow", plot.narrow_svg)):
        svg = (svg or "<svg></svg>").replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
        shown += f'<div class="on-{screen}">{_own_ids(svg, f"{name}-{screen}")}</div>'
    return f"<figure>{shown}<figcaption>{label}</figcaption></figure>"


def _own_ids(svg: str, name: str) -> str:
    """Return the SVG with ids of its own: several stand in one page."""
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    return re.sub(r'(url\(#|xlink:href="#|href="#)', rf"\1{name}-", svg)


def _link_rows(body: str) -> str:
    """Let #12 lead to row 12 of the last table, which lists all rows."""
    head, separator, tail = body.rpartition("<tbody>")
    tail = re.sub(r"<tr>\s*<td([^>]*)>#(\d+)</td>", r'<tr id="row-\2">\n<td\1>#\2</td>', tail)
    rows = set(re.findall(r'id="row-(\d+)"', tail))

    def link(match: re.Match[str]) -> str:
        number = match.group(1)
        return f'<a href="#row-{number}">#{number}</a>' if number in rows else match.group(0)

    return re.sub(r"(?<=[>(])#(\d+)(?=[<)])", link, head) + separator + tail


def without_plots(page: str) -> str:
    """Return a page without its plots: what --check compares."""
    return re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    os.replace(partial, path)
