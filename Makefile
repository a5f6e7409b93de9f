# make demo and make test are all that a fresh clone needs: each sets up .venv itself, again when a pin changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# A venv of its own, of seconds: the documentation needs no torch.
DOCS_BIN := $(VENV)-docs/bin
DOCS_STAMP := $(VENV)-docs/.installed
# worksteal: neighbours stay in one process, which makes their module's fixtures once, and no process waits for the other.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: help setup demo test test-all families docs docs-serve lint clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(STAMP)  ## make .venv with the pinned requirements

demo: $(STAMP)  ## train, quantize, export, build, score, search and report the digits ViT; no network, 2 to 5 minutes on 2 cores
	@$(BIN)/python -m eval.demo

test: $(STAMP)  ## run the tests but the slow ones, in two processes; skips are printed with their reasons
	@$(PYTEST) -m "not slow"

test-all: $(STAMP)  ## run all tests
	@$(PYTEST)

families: $(STAMP)  ## run every family of transformers through every step: benchmarks/results/families.jsonl, about 20 minutes
	@$(BIN)/python -m benchmarks.families
	@$(BIN)/python -m benchmarks.families --table benchmarks/results/families.md
	@$(BIN)/python -m benchmarks.families --table docs/families.md

docs: $(DOCS_STAMP)  ## build the documentation into site/; a broken link or an unknown name fails
	@NO_MKDOCS_2_WARNING=1 $(DOCS_BIN)/python -m mkdocs build --strict
	@echo site/index.html

docs-serve: $(DOCS_STAMP)  ## the documentation on this machine, built again at each change
	@NO_MKDOCS_2_WARNING=1 $(DOCS_BIN)/python -m mkdocs serve --strict

lint: $(STAMP)  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/mypy

clean:  ## remove .venv, the site and the tools' caches
	rm -rf $(VENV) $(VENV)-docs site .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The stamp is touched last, so that an interrupted installation is done again.
$(STAMP): requirements.txt requirements-dev.txt requirements-docs.txt requirements-gpu.txt requirements-ray.txt requirements-tensorrt.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else \
	"int8kit needs Python 3.11 to 3.13; $(PYTHON) is %d.%d. Name another one: make setup PYTHON=python3.12" % v)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

$(DOCS_STAMP): requirements-docs.txt
	@test -x $(DOCS_BIN)/python || $(PYTHON) -m venv $(VENV)-docs
	@$(DOCS_BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch $@
