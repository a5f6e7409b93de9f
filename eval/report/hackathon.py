"""The report in the sections of the TensorRT Hackathon 2022 final; prose comes from notes.yaml, never from here."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import yaml

from eval.report import sections as sections_of
from eval.report import tables
from eval.report.cards import cards
from eval.report.context import Context
from eval.report.document.blocks import Block, Code, Document, Figure, Items, Prose, Section
from eval.report.document.markdown import demoted
from eval.report.run_data import label
from eval.report.summary_section import machine
from eval.report.writing import first_names
from eval.sweep.grid import PYTORCH

NOTES_FILE = "notes.yaml"
NOTES = ("title", "team", "link", "use", "users", "structure", "hard", "process", "bugs", "lessons", "weights")
DOCKERFILE = Path(__file__).parents[2] / "Dockerfile"


def read_notes(run: Path) -> dict[str, object]:
    """Return the notes beside a run; none is no error. Raises: ValueError: no mapping, or unknown keys."""
    path = run / NOTES_FILE
    if not path.is_file():
        return {}
    try:
        notes = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())[:200]}") from None
    unknown = sorted(set(notes) - set(NOTES)) if isinstance(notes, dict) else [str(notes)[:40]]
    if unknown:
        raise ValueError(f"{path} has unknown notes {', '.join(map(str, unknown))}; allowed: {', '.join(NOTES)}")
    return notes


def note(c: Context, key: str) -> str:
    """Return a person's note, or the mark that it is missing."""
    found = c.notes.get(key)
    if not found:
        return c.t("missing_note", key=key, what=c.t(f"note_{key}"))
    return "\n".join(f"- {each}" for each in found) if isinstance(found, list) else str(found).strip()


def hackathon_report(c: Context) -> Document:
    """Return the whole report in the contest's order."""
    sections = (
        _overview(c), _original(c), _process(c), _accuracy(c), _performance(c),
        Section("bugs", c.t("h_bugs"), _bugs(c)), Section("lessons", c.t("h_lessons"), (Prose(note(c, "lessons")),)),
        sections_of.not_measured(c), sections_of.row_list(c),
    )  # fmt: skip
    team = Prose(c.t("h_team", team=note(c, "team")))
    return Document(note(c, "title"), (team,), sections, tuple(cards(c)), c.t.lang, c.t("contents"))


def _overview(c: Context) -> Section:
    return Section("overview", c.t("h_overview"), (
        Prose(c.t("h_link", link=note(c, "link"))), *machine(c), sections_of.summary(c), sections_of.where_not(c),
        Prose(c.t("h_steps")), Code("\n".join(commands(c)), "bash"), Prose(c.t("h_commands_note"))))  # fmt: skip


def commands(c: Context) -> list[str]:
    """Return the commands from an empty machine to this report, with the sweep's own --out and the report's options."""
    image = base_image(DOCKERFILE.read_text(encoding="utf-8")) if DOCKERFILE.is_file() else None
    words = shlex.split(c.data.manifest["command"])
    out = words[words.index("--out") + 1] if "--out" in words[:-1] else c.data.run.path.name
    options = f"--template hackathon --lang {c.t.lang} --max-loss {c.max_loss:g}"
    pull = [f"docker pull {image}", "docker build -t int8kit .", "docker run --gpus all -it --rm int8kit"]
    return [*(pull if image else []), c.data.manifest["command"], f"python -m eval.report {shlex.quote(out)} {options}"]


def base_image(dockerfile: str) -> str | None:
    """Return the first image a Dockerfile starts from, the defaults of its ARG lines put in; None without FROM."""
    lines = [line.split() for line in dockerfile.splitlines() if line.strip()]
    defaults = dict(words[1].split("=", 1) for words in lines if words[0] == "ARG" and "=" in words[1])
    image = next((words[1] for words in lines if words[0] == "FROM"), None)
    return re.sub(r"\$\{?(\w+)\}?", lambda m: defaults.get(m.group(1), m.group(0)), image) if image else None


def _original(c: Context) -> Section:
    facts = dict(c.data.analysis.get("model", {}))
    found: list[Block] = [Prose(c.t("h_use", text=note(c, "use"))), Prose(c.t("h_users", text=note(c, "users")))]
    if facts:
        architecture, parameters = facts.pop("architecture"), facts.pop("num_parameters")
        facts.pop("model_type", None)
        sizes = ", ".join(f"{name} {size}" for name, size in sorted(facts.items()))
        found.append(Prose(c.t("h_facts", architecture=architecture, num_parameters=f"{parameters:,}", sizes=sizes)))
    found.append(Prose(c.t("h_structure", text=note(c, "structure"))))
    hard: list[Block] = [Prose(note(c, "hard"))]
    lint = c.data.analysis.get("lint")
    if lint:
        hard += [Prose(c.t("h_lint", system=label(c.data.system_named(lint["system"])))), Code(lint["text"])]
    items, seen = [], set()
    for system in c.data.int8_systems:
        row = c.data.ok(system)
        products = row.details.products if row else None
        names = [*products.float, *products.attention_float] if products else []
        if names and (system.recipe, system.backend) not in seen:  # no calibrator changes which products run in INT8
            seen.add((system.recipe, system.backend))
            items.append(c.t("h_left_float", system=label(system), count=len(names), names=first_names(names)))
    hard += [Items(tuple(map(Prose, items)))] if items else []
    return Section("model", c.t("h_model"), (*found, Section("hard", c.t("h_hard"), tuple(hard))))


def _process(c: Context) -> Section:
    backends = [b for b in c.data.options.backends if b != PYTORCH]
    return Section("process", c.t("h_process"), (
        Prose(note(c, "process")), *(block for backend in backends for block in tables.ablation(c, backend)),
        *sections_of.figure(c, "layers", "plot_layers"), *sections_of.figure(c, "sites", "plot_sites"),
        *sections_of.figure(c, "timeline", "plot_timeline")))  # fmt: skip


def _accuracy(c: Context) -> Section:
    inputs = f"{Path(c.data.options.data or c.data.options.samples).name} ({c.data.options.split})"
    return Section("accuracy", c.t("h_accuracy"), (
        Prose(c.t("h_real", weights=note(c, "weights"), inputs=inputs)), tables.errors(c.data, c.t),
        *tables.accuracy_by_length(c),
        *sections_of.figure(c, "pareto", "plot_pareto", leads=True, shape=c.shape())))  # fmt: skip


def _performance(c: Context) -> Section:
    parts = [sections_of.over_shapes(c), sections_of.sizes(c), sections_of.under_load(c), sections_of.provenance(c)]
    return Section("performance", c.t("h_performance"), (
        tables.candidates(c), Prose(c.t("ties_note"), is_note=True),
        *(_without_timeline(each) for each in parts if each is not None)))  # fmt: skip


def _without_timeline(section: Section) -> Section:
    """Return a section without the plot that stands among the process."""
    kept = tuple(each for each in section.blocks if not (isinstance(each, Figure) and each.name == "timeline"))
    return replace(section, blocks=kept)


def _bugs(c: Context) -> tuple[Block, ...]:
    """Return the bug reports in RUN/bugs/*.md (engine.bug_report writes such files), and the notes about bugs."""
    folder = c.data.run.path / "bugs"
    paths = sorted(folder.glob("*.md")) if folder.is_dir() else []
    found = [Prose(demoted(path.read_text(encoding="utf-8"), 2)) for path in paths]
    return (*found, Prose(note(c, "bugs"))) if c.notes.get("bugs") or not found else tuple(found)
