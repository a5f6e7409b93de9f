"""What MkDocs calls while it builds: pages made from other files, and links to files of the repository.

It needs no package beyond MkDocs' own: the site is built without torch. Pages link to rows, reports and code as they
lie in the repository, so that the links hold there as well; here the linked files become a part of the site.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REPOSITORY = "repository"  # the folder of the site that holds linked files from outside docs/
FENCED = re.compile(r"(^ *```.*?^ *```[ ]*$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
RECIPES = "<!-- recipes: quant/recipes/*.yaml, put here by the site -->"
NOTEBOOKS = ("tutorials/first_steps.ipynb",)


def on_config(config: Any) -> Any:
    """Add to each folder of the menu that names its index.md alone the pages which that one links, in its order."""
    for tab in config["nav"]:
        for entries in tab.values():
            for entry in entries if isinstance(entries, list) else []:
                for name, pages in entry.items() if isinstance(entry, dict) else []:
                    if isinstance(pages, list) and len(pages) == 1:
                        entry[name] = [*pages, *linked_beside(pages[0])]
    return config


def linked_beside(index: str) -> list[str]:
    """Return the pages of an index.md's own folder that it links."""
    names = [m.group(2) for m in LINK.finditer((DOCS / index).read_text(encoding="utf-8"))]
    return [posixpath.join(posixpath.dirname(index), name) for name in names if "/" not in name]


def on_files(files: Files, config: Any) -> Files:
    """Add the notebook as a page, and the files of the repository that pages link to, and those that these link to."""
    for notebook in NOTEBOOKS:
        page = notebook_page(json.loads((DOCS / notebook).read_text(encoding="utf-8")), posixpath.basename(notebook))
        files.append(File.generated(config, notebook.replace(".ipynb", ".md"), content=page))
    left = [(file.src_uri, file.content_string) for file in files.documentation_pages()]
    while left:
        source, text = left.pop()
        for place, path in outside_links(source, text):
            if files.get_file_from_path(place) is None:
                files.append(File.generated(config, place, abs_src_path=str(path)))
                if place.endswith(".md"):
                    left.append((place, path.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Put the recipes in their place and turn links that leave docs/ to where their files stand in the site."""

    def moved(target: str) -> str:
        found = placed(page.file.src_uri, target)
        return target if found is None else posixpath.relpath(found[0], posixpath.dirname(page.file.src_uri) or ".")

    return outside_code(markdown.replace(RECIPES, recipes()), lambda text: LINK.sub(
        lambda m: m.group(1) + moved(m.group(2)) + m.group(3), text))  # fmt: skip


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """Return Markdown with what is no code changed."""
    return "".join(part if number % 2 else change(part) for number, part in enumerate(FENCED.split(text)))


def outside_links(source: str, text: str) -> list[tuple[str, Path]]:
    """Return (place in the site, file) of the links of a page that lead out of docs/ to a file that is there."""
    found: list[tuple[str, Path] | None] = []
    outside_code(text, lambda part: found.extend(placed(source, m.group(2)) for m in LINK.finditer(part)) or part)
    return [each for each in found if each is not None]


def placed(source: str, target: str) -> tuple[str, Path] | None:
    """Return where in the site a link's file stands that lies outside docs/; None for other links and broken ones.

    Args:
        source: the page, as MkDocs names it: below docs/, or below `repository/` for a file of the repository.
    """
    if "://" in target or target.startswith(("mailto:", "/")):
        return None
    at = ROOT / source.removeprefix(f"{REPOSITORY}/") if source.startswith(f"{REPOSITORY}/") else DOCS / source
    path = Path(posixpath.normpath(at.parent / target))
    if not path.is_file() or not path.is_relative_to(ROOT):
        return None
    inside = path.relative_to(DOCS) if path.is_relative_to(DOCS) else Path(REPOSITORY) / path.relative_to(ROOT)
    return None if not source.startswith(REPOSITORY) and path.is_relative_to(DOCS) else (inside.as_posix(), path)


def recipes() -> str:
    """Return every shipped recipe as it is written, its comment as text above it."""
    lines = []
    for path in sorted((ROOT / "quant" / "recipes").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        yaml.safe_load(text)  # a broken recipe ends the build
        comment = re.match(r"(?:#.*\n)+", text)
        head = " ".join(line.lstrip("# ") for line in comment.group().splitlines()) if comment else ""
        rules = text[comment.end() if comment else 0 :].rstrip()
        lines += [f"### {path.stem}", "", head, "", "```yaml", rules, "```", ""]
    return "\n".join(lines)


def notebook_page(notebook: dict[str, Any], name: str) -> str:
    """Return a notebook's cells as Markdown, with a link to the file below the first."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    parts.insert(1, f"The notebook itself: [{name}]({name}).")
    return "\n\n".join(parts) + "\n"
