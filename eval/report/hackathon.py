"""The report in the sections of the TensorRT Hackathon 2022 final; prose comes from notes.yaml, never from here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import yaml

from eval.report import sections, tables
from eval.report.context import Context
from eval.report.run_data import label
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


def hackathon_report(c: Context) -> list[str]:
    """Return the whole report as lines of Markdown, in the contest's order."""
    return [
        f"# {note(c, 'title')}", "", c.t("h_team", team=note(c, "team")), "",
        *_overview(c), *_original(c), *_process(c), *_accuracy(c), *_performance(c),
        f"## {c.t('h_bugs')}", "", *_bugs(c), f"## {c.t('h_lessons')}", "", note(c, "lessons"), "",
        *sections.not_measured(c), *sections.row_list(c),
    ]  # fmt: skip


def _deeper(lines: list[str]) -> list[str]:
    """Return lines with their headings one level down."""
    return [f"#{line}" if line.startswith("#") and re.match(r"#+ ", line) else line for line in lines]


def _overview(c: Context) -> list[str]:
    return [
        f"## {c.t('h_overview')}", "", c.t("h_link", link=note(c, "link")), "",
        *_deeper(sections.summary(c)), *_deeper(sections.where_not(c)), c.t("h_steps"), "",
        "```bash", *commands(c), "```", "", c.t("h_commands_note"), "",
    ]  # fmt: skip


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


def _original(c: Context) -> list[str]:
    facts = dict(c.data.analysis.get("model", {}))
    lines = [f"## {c.t('h_model')}", ""]
    lines += [c.t("h_use", text=note(c, "use")), "", c.t("h_users", text=note(c, "users")), ""]
    if facts:
        architecture, parameters = facts.pop("architecture"), facts.pop("num_parameters")
        facts.pop("model_type", None)
        sizes = ", ".join(f"{name} {size}" for name, size in sorted(facts.items()))
        lines += [c.t("h_facts", architecture=architecture, num_parameters=f"{parameters:,}", sizes=sizes), ""]
    lines += [c.t("h_structure", text=note(c, "structure")), "", f"### {c.t('h_hard')}", "", note(c, "hard"), ""]
    lint = c.data.analysis.get("lint")
    if lint:
        lines += [c.t("h_lint", system=label(c.data.system_named(lint["system"]))), "", "```", lint["text"], "```", ""]
    seen = set()
    for system in c.data.int8_systems:
        row = c.data.ok(system)
        found = row.details.products if row else None
        names = [*found.float, *found.attention_float] if found else []
        if names and (system.recipe, system.backend) not in seen:  # no calibrator changes which products run in INT8
            seen.add((system.recipe, system.backend))
            lines += ["- " + c.t("h_left_float", system=label(system), count=len(names), names=first_names(names))]
    return [*lines, ""]


def _process(c: Context) -> list[str]:
    backends = [b for b in c.data.options.backends if b != PYTORCH]
    lines = [f"## {c.t('h_process')}", "", note(c, "process"), ""]
    for backend in backends:
        lines += tables.ablation(c, backend)
    return [*lines, *sections.figure(c, "layers", "plot_layers"), *sections.figure(c, "sites", "plot_sites"),
            *sections.figure(c, "timeline", "plot_timeline")]  # fmt: skip


def _accuracy(c: Context) -> list[str]:
    shape = c.shape()
    inputs = Path(c.data.options.data or c.data.options.samples).name
    return [
        f"## {c.t('h_accuracy')}", "", c.t("h_real", weights=note(c, "weights"), inputs=f"{inputs} "
                                           f"({c.data.options.split})"), "",
        *tables.errors(c.data, c.t), *tables.accuracy_by_length(c),
        *sections.figure(c, "pareto", "plot_pareto", shape=shape),
    ]  # fmt: skip


def _performance(c: Context) -> list[str]:
    return [f"## {c.t('h_performance')}", "", *tables.candidates(c), c.t("ties_note"), "",
            *_deeper(sections.over_shapes(c)), *_deeper(sections.sizes(c)), *_deeper(sections.under_load(c)),
            *_deeper([line for line in sections.provenance(c) if "plots/timeline" not in line])]  # fmt: skip


def _bugs(c: Context) -> list[str]:
    """Return the bug reports in RUN/bugs/*.md (engine.bug_report writes such files), and the notes about bugs."""
    folder = c.data.run.path / "bugs"
    lines: list[str] = []
    for path in sorted(folder.glob("*.md")) if folder.is_dir() else []:
        lines += [*_deeper(_deeper(path.read_text(encoding="utf-8").splitlines())), ""]
    if c.notes.get("bugs") or not lines:
        lines += [note(c, "bugs"), ""]
    return lines
