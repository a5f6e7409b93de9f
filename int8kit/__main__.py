"""`int8kit COMMAND`: one door to all commands; `python -m calib` and the scripts stay what they are."""

from __future__ import annotations

import importlib
import sys

from engine.cli import EXIT_USAGE, did_you_mean

COMMANDS = {
    "quantize": ("int8kit.command", "samples in, a tested INT8 model out: calibrate, export, build, compare"),
    "search": ("eval.search.__main__", "will INT8 pay here, and where: a recipe within a loss, proven by building"),
    "calib": ("calib.__main__", "insert quantizers and calibrate them from samples: a checkpoint"),
    "train": ("train_qat", "quantization-aware training (QAT), or fine-tuning in float"),
    "export": ("export", "a checkpoint as the file of one runtime, checked before it is kept"),
    "build": ("build_engine", "an engine of that file: ONNX Runtime, OpenVINO, TensorRT, our own on GPUs"),
    "eval": ("eval.__main__", "score an engine, a checkpoint or a float model on a task"),
    "sweep": ("eval.sweep.__main__", "accuracy against speed over methods, recipes, runtimes and shapes"),
    "report": ("eval.report.__main__", "the page of a sweep"),
    "lint": ("engine.lint.__main__", "what of an ONNX file will not run in INT8, and why"),
    "inspect": ("engine.inspect.__main__", "what an engine really runs; --expect RECIPE as a gate"),
    "run": ("engine.run", "run an engine on arrays"),
    "load": ("eval.load", "throughput and latency under load"),
    "reproduce": ("eval.reproduce", "measure a row of a sweep again"),
    "bug-report": ("engine.bug_report.__main__", "a file for an upstream issue"),
}


def usage() -> str:
    """Return the help of the door itself."""
    lines = ["usage: int8kit COMMAND ...", "", "INT8 for transformers: quantize, measure, prove.", ""]
    lines += [f"  {name:<11}{text}" for name, (_, text) in COMMANDS.items()]
    first = "  int8kit quantize my-bert --samples reviews.csv --out my-bert-int8"
    lines += ["", "int8kit COMMAND --help says more. The first to try:", first]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run one command with the words behind it."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        raise SystemExit(0 if words else EXIT_USAGE)
    if words[0] not in COMMANDS:
        near = did_you_mean(words[0], COMMANDS, " ({})")
        print(f"int8kit: no command '{words[0]}'{near}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)
    module, _ = COMMANDS[words[0]]
    sys.argv = [f"int8kit {words[0]}", *words[1:]]  # some commands keep their words for the rows
    importlib.import_module(module).main(list(words[1:]))


if __name__ == "__main__":
    main()
