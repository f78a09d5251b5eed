# Two commands: `make suites` measures real vLLM, `make test` runs the project's own tests.
VENV   ?= .venv
PYTHON ?= python3.11
READY  := $(VENV)/.ready
RUN    ?= $(VENV)/bin/python
TWIN   := ./.twins/Qwen2.5-7B-Instruct-twin

# The bundled model is served unless MODEL names another (a hub id or a path).
export MODEL

VERSIONS := 0.14.0 0.20.2 0.31.0
.PHONY: suites suites-gpu quantization test faults test-compat test-random test-real test-versions test-gates fuzz docs lint clean help

help:            ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 18

suites: $(READY) ## launch real vLLM, measure, judge, report (ARGS="…" goes to pytest)
	$(VENV)/bin/python -m pytest suites/ $(ARGS)

suites-gpu: $(READY) ## gate a GPU runner: MODEL=…, or without it a shape twin of Qwen2.5-7B-Instruct, which needs no hub
	@nvidia-smi -L >/dev/null 2>&1 || { echo "suites-gpu: nvidia-smi -L lists no GPU here; 'make suites' uses the CPU" >&2; exit 1; }
	@[ -n "$(MODEL)" ] || [ -d $(TWIN) ] || $(RUN) -m pytest_vllmperf.cli twin Qwen2.5-7B-Instruct $(TWIN)
	MODEL="$(or $(MODEL),$(TWIN))" $(RUN) -m pytest suites/ --vllmperf-require-gpu $(ARGS)

quantization: $(READY) ## which quantization of the model to serve (opt-in, five engines)
	$(VENV)/bin/python -m pytest suites/ -m quantization $(ARGS)

test: $(READY) lint ## the project's own tests, one of them on real vLLM
	$(VENV)/bin/python -m pytest tests/ $(ARGS)

faults: $(READY) ## every row of the fault plan that needs no real vLLM, with the time each one took
	$(VENV)/bin/python -m pytest tests/ -m 'fault_plan and not real_faults' -n 2 -rP --durations=0 $(ARGS)

test-real: $(READY) ## kill, suspend and misconfigure real vLLM, hold its answers and its counts against what is true (minutes)
	$(VENV)/bin/python -m pytest tests/test_real_faults.py tests/test_real_quality.py tests/test_real_load.py -m 'real_faults or real_quality or real_load' -rP $(ARGS)

test-versions: $(READY) $(VERSIONS:%=.venv-%/.ready) ## vLLM 0.14, 0.20, 0.31 and 0.32 in one run (minutes, and 8 GB each)
	$(VENV)/bin/python -m pytest tests/test_versions.py -m versions $(ARGS)

.venv-%/.ready: scripts/setup-version.sh scripts/venv-with-uv.sh requirements/overrides-cpu.txt
	scripts/setup-version.sh .venv-$* $(PYTHON) $*
	@touch $@

test-gates: $(READY) ## whole gates on real processes, 20 of an unchanged engine and 20 of a slower one (minutes, quiet machine)
	PYTHONPATH=. $(VENV)/bin/python benchmarks/verdict_gates.py --same 20 --slower 20 --jobs 4 --check $(ARGS)

fuzz: $(READY)   ## 28 000 splits, truncations and corruptions of recorded streams (minutes)
	HYPOTHESIS_PROFILE=fuzz $(VENV)/bin/python -m pytest -q tests/load/test_connection_fuzz.py tests/load/test_token_chunks.py $(ARGS)

docs: $(READY)   ## build the documentation into site/ (reference pages are made from the code)
	$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --system-certs --group docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet
	@echo "docs: open site/index.html"

test-compat: $(READY) ## the seams on every supported pytest, pytest-benchmark, xdist and Python (19 environments)
	$(VENV)/bin/nox -f noxfile.py $(ARGS)

test-random: $(READY) ## the project's own tests in random order on two workers
	$(VENV)/bin/python -m pytest tests/ -p randomly -n 2 $(ARGS)

lint: $(READY)   ## formatting, lint, types, layers
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	PYTHONPATH=. $(VENV)/bin/lint-imports

$(READY): pyproject.toml scripts/setup-venv.sh scripts/venv-with-uv.sh $(wildcard requirements/*.txt)
	scripts/setup-venv.sh $(VENV) $(PYTHON)
	@touch $@

clean:           ## remove the virtual environment and everything generated
	rm -rf $(VENV) $(VERSIONS:%=.venv-%) .twins site reports/latest .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
