r"""Does the linter say what the consumers do? Every small file, judged for every consumer and asked of it.

    python -m benchmarks.lint.agreement --out benchmarks/results/lint_agreement.jsonl \
        --table benchmarks/results/lint_agreement.md

Needs no GPU; TensorRT-RTX's parser and builder run without one. It ends with 1 if anything disagrees.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from benchmarks.lint.consumers import CONSUMERS, Consumers, Seen
from benchmarks.lint.table import table
from benchmarks.rows import provenance
from engine.hardware import VNNI, cpu_flags
from engine.lint.claims import FLOAT, NUMBERS, REFUSED, UNSEEN
from engine.lint.report import judge_model
from engine.products import Product

# (consumer, file) → why the linter is left wrong there.
KNOWN = {
    ("tensorrt", "fp32 Attention of opset 23"): "a float file: TensorRT-RTX 1.7.1 takes some Attention in fp32, stops "
    "at others and crashes where Q, K and V are one tensor; no rule was found",
    ("onnxruntime", "ours, tensorrt: attention"): "a file for another consumer: ONNX Runtime moves the casts around "
    "its fp16 products so that Q K^T is fused after all",
    ("openvino", "ours, tensorrt: table"): "a file for another consumer: OpenVINO 2026.4.1 crashes at a table that is "
    "dequantized to fp16 by columns before Gather",
}
RIGHT, FALSE_ALARM, MISSED = "right", "false alarm", "missed"


@dataclass(frozen=True)
class Agreement:
    """What the linter said of one file for one consumer, beside what that did."""

    file: str
    consumer: str
    seen: Seen
    said_refused: bool
    said_int8: tuple[bool, ...]  # of each product
    ran_int8: tuple[bool | None, ...]  # None: the consumer does not tell
    verdicts: tuple[tuple[str, str], ...]  # (rule, right, false alarm or missed)

    @property
    def is_right(self) -> bool:
        """Whether every rule that spoke was right and none was missing."""
        return all(verdict == RIGHT for _, verdict in self.verdicts)


def compare(name: str, model: onnx.ModelProto, consumer: str, seen: Seen) -> Agreement:
    """Return how the linter's word on a file compares with what a consumer did."""
    judgement = judge_model(model, consumer)
    products = list(judgement.products)
    ran = seen.runs_in_int8(products) if seen.refused is None else [None] * len(products)
    said = [judgement.runs_in_int8(product) for product in products]
    verdicts: list[tuple[str, str]] = []
    for rule, hit in judgement.hits:
        verdict = _verdict(hit.claim or rule.claim, hit.site, dict(zip(products, ran, strict=True)), seen)
        if verdict is not None and (rule.name, verdict) not in verdicts:
            verdicts.append((rule.name, verdict))
    is_unseen = bool(judgement.claims(UNSEEN))
    if seen.refused is not None and not judgement.is_refused and not is_unseen:
        verdicts.append(("(refused)", MISSED))
    for has_said, has_run in zip(said, ran, strict=True):
        if has_run is not None and not judgement.is_refused:
            if has_said != has_run:
                verdicts.append(("(in INT8)" if has_said else "(in float)", MISSED if has_said else FALSE_ALARM))
            elif has_said:
                verdicts.append(("(in INT8)", RIGHT))
    return Agreement(name, consumer, seen, judgement.is_refused, tuple(said), tuple(ran), tuple(verdicts))


def _verdict(claim: str, site: Any, ran: Mapping[Product, bool | None], seen: Seen) -> str | None:
    """Return whether one hit is borne out; None where it claims nothing that can be looked at here."""
    if claim == REFUSED:
        return RIGHT if seen.refused is not None else FALSE_ALARM
    if claim == FLOAT and isinstance(site, Product) and ran.get(site) is not None:
        return FALSE_ALARM if ran[site] else RIGHT
    if claim == NUMBERS and seen.are_numbers_right is not None:
        return FALSE_ALARM if seen.are_numbers_right else RIGHT
    if claim == UNSEEN:
        return FALSE_ALARM if seen.refused is None and ran and all(each is not None for each in ran.values()) else RIGHT
    return None


def row_of(each: Agreement) -> dict[str, Any]:
    """Return an agreement as a row of results."""
    return {
        "file": each.file,
        "consumer": each.consumer,
        "refused": each.seen.refused,
        "said_refused": each.said_refused,
        "products_int8": list(each.ran_int8),
        "said_int8": list(each.said_int8),
        "are_numbers_right": each.seen.are_numbers_right,
        "verdicts": [list(pair) for pair in each.verdicts],
        "is_right": each.is_right,
    }


def main() -> None:
    from benchmarks.lint.tools import all_files  # it needs the tools

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="rows; replaced")
    parser.add_argument("--table", type=Path, help="the table in Markdown; replaced")
    parser.add_argument("--only", default="", help="files whose name holds this")
    parser.add_argument("--consumers", nargs="+", default=list(CONSUMERS), choices=CONSUMERS)
    arguments = parser.parse_args()
    found: list[Agreement] = []
    with Consumers() as consumers:
        for name, make in all_files().items():
            if arguments.only not in name:
                continue
            model = make()
            for consumer in arguments.consumers:
                found.append(compare(name, model, consumer, consumers.ask(consumer, model)))
                if not found[-1].is_right:
                    print(f"{consumer}: {name}: {found[-1].verdicts}; {found[-1].seen}"[:400], flush=True)
    has_vnni = bool(VNNI & set(cpu_flags()))
    made_by = {"benchmark": "lint_agreement", "has_vnni": has_vnni, **provenance()}
    rows = [{**row_of(each), **made_by} for each in found]
    arguments.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    if arguments.table:
        arguments.table.write_text(table(rows, KNOWN), encoding="utf-8")
    wrong = [each for each in found if not each.is_right and (each.consumer, each.file) not in KNOWN]
    known = sum(not each.is_right for each in found) - len(wrong)
    files = len({each.file for each in found})
    print(f"{len(found)} judgements of {files} files: {len(wrong)} disagree, {known} more for a known reason")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
