"""The table of agreement of the linter with the consumers, from its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

COMMAND = "`python -m benchmarks.lint.agreement`"
SHOWN_PACKAGES = ("onnx", "onnxruntime", "openvino", "tensorrt_rtx", "nvidia-modelopt", "nncf")


def table(rows: Sequence[dict[str, Any]], reasons: Mapping[tuple[str, str], str]) -> str:
    """Return the rows' table in Markdown: each rule by consumer as right / false alarm / missed, then what disagrees.

    Args:
        rows: of `benchmarks.lint.agreement`.
        reasons: (consumer, file) → why they disagree, where that is known.
    """
    consumers = list(dict.fromkeys(row["consumer"] for row in rows))
    counts: Counter[tuple[str, str, str]] = Counter()
    for row in rows:
        counts.update((rule, row["consumer"], verdict) for rule, verdict in row["verdicts"])
    rules = sorted({rule for rule, _, _ in counts})
    lines = [
        "# What the linter says, and what the consumers do",
        "",
        f"{len({row['file'] for row in rows})} small files; {_conditions(rows[0])}; {COMMAND}.",
        "TensorRT stands for TensorRT-RTX's parser and builder. Cells: right / false alarm / missed.",
        "*(in INT8)* counts products that the linter says run in INT8; *missed* there: they run in float and no rule",
        "says so. *(in float)*: false alarms that no single rule made. *(refused)* missed: refused without a word.",
        "Rules that speak of time alone, and those for TensorRT 8, claim nothing that can be asked here.",
        "",
        f"| rule | {' | '.join(consumers)} |",
        f"|---|{'---|' * len(consumers)}",
    ]
    for rule in rules:
        cells = []
        for consumer in consumers:
            three = [counts[rule, consumer, verdict] for verdict in ("right", "false alarm", "missed")]
            cells.append(" / ".join(map(str, three)) if any(three) else "")
        lines.append(f"| {rule} | {' | '.join(cells)} |")
    lines += ["", f"| files judged rightly | {' | '.join(consumers)} |", f"|---|{'---|' * len(consumers)}"]
    of_consumer = {each: [row for row in rows if row["consumer"] == each] for each in consumers}
    whole = [f"{sum(row['is_right'] for row in own)} of {len(own)}" for own in of_consumer.values()]
    lines.append(f"| all | {' | '.join(whole)} |")
    hidden = [row for row in rows if row["refused"] is None and None in row["products_int8"]]
    if hidden:
        names = "; ".join(f"{row['consumer']}: {row['file']}" for row in hidden)
        lines += ["", f"Not comparable, since the consumer does not tell what it ran: {names}."]
    wrong = [row for row in rows if not row["is_right"]]
    lines += ["", "Disagreements: " + ("none." if not wrong else ""), ""]
    for row in wrong:
        what = ", ".join(f"{rule} {verdict}" for rule, verdict in row["verdicts"] if verdict != "right")
        why = reasons.get((row["consumer"], row["file"]), "not explained")
        lines.append(f"- {row['consumer']}, *{row['file']}*: {what}: {why}.")
    return "\n".join(lines).rstrip() + "\n"


def _conditions(row: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {row['versions'][name]}" for name in SHOWN_PACKAGES if name in row["versions"])
    return f"{versions}; {row['device']}, {'with' if row['has_vnni'] else 'without'} VNNI"
