# Two commands: `make suites` measures real vLLM, `make test` runs the project's own tests.
VENV   ?= .venv
PYTHON ?= python3.11
READY  := $(VENV)/.ready

# The bundled model is served unless MODEL names another (a hub id or a path).
export MODEL

.PHONY: suites test lint clean help

help:            ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 18

suites: $(READY) ## launch real vLLM, measure, judge, report (ARGS="…" goes to pytest)
	$(VENV)/bin/python -m pytest suites/ $(ARGS)

test: $(READY) lint ## the project's own tests, one of them on real vLLM
	$(VENV)/bin/python -m pytest tests/ $(ARGS)

lint: $(READY)   ## formatting, lint, types, layers
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	PYTHONPATH=. $(VENV)/bin/lint-imports

$(READY): pyproject.toml scripts/setup-venv.sh $(wildcard requirements/*.txt)
	scripts/setup-venv.sh $(VENV) $(PYTHON)
	@touch $@

clean:           ## remove the virtual environment and everything generated
	rm -rf $(VENV) reports/latest .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
