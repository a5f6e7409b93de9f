"""A plot of matplotlib's inside a page: ids of its own, the page's ink, no inline style (the page forbids it)."""

from __future__ import annotations

from xml.etree import ElementTree

EMPTY = "<svg></svg>"
DROPPED = {"metadata", "style"}  # the latter's one rule stands in page.css
OWN_FONT = {"font-family", "font"}  # text has the page's font


def inline_svg(svg: str, name: str, label: str, colors: dict[str, str]) -> str:
    """Return a plot's SVG for a page.

    Args:
        svg: as matplotlib writes it, with the prologue of a file or without.
        name: stands before every id: several plots are in one page.
        label: what a screen reader says.
        colors: colour in the SVG -> the page's own.
    """
    if not svg:
        return EMPTY
    root = ElementTree.fromstring(svg[svg.index("<svg") :])
    _clean(root, name, colors)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    return ElementTree.tostring(root, encoding="unicode").strip()


def _clean(element: ElementTree.Element, name: str, colors: dict[str, str]) -> None:
    """Make one element, and all in it, a page's own."""
    element.tag = _local(element.tag)
    found = {_local(key): value for key, value in element.attrib.items()}
    for declaration in found.pop("style", "").split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key and key not in OWN_FONT:
            found[key] = value
    for key, value in found.items():
        if key == "id":
            found[key] = f"{name}-{value}"
        elif key == "href" and value.startswith("#"):
            found[key] = f"#{name}-{value[1:]}"
        else:
            found[key] = value.replace("url(#", f"url(#{name}-")
        found[key] = colors.get(found[key], found[key])
    element.attrib = found
    for child in list(element):
        if _local(child.tag) in DROPPED:
            element.remove(child)
        else:
            _clean(child, name, colors)
    element.text, element.tail = (text if text and text.strip() else "" for text in (element.text, element.tail))


def _local(name: str) -> str:
    """Return a name without its namespace: HTML knows SVG's own."""
    return name.rpartition("}")[2]
