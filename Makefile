# Everything after `make install` needs only this file, Python 3.11 or newer and make.
# Settings: PYTHON=python3.12  TORCH=cpu (no CUDA libraries)  FAISS=gpu  ARGS="…"  NAME=step

BIN := .venv/bin
# The stamp's name records how .venv was installed, so that a choice is kept.
CHOSEN := $(subst -, ,$(notdir $(wildcard .venv/.installed-*)))
PYTHON ?= python3
FAISS ?= $(or $(word 2,$(CHOSEN)),cpu)
TORCH ?= $(or $(word 3,$(CHOSEN)),default)
ARGS ?=
NAME ?=
KILLS ?= 500
ROUNDS ?= 16
MODE ?=
# Number of test processes, each with its own Kafka broker (350 MB); 0: run in this process.
JOBS ?= 3
REPORT ?= chaos.json

FRESHET := $(BIN)/freshet
STAMP := .venv/.installed-$(FAISS)-$(TORCH)
OTHER_FAISS := $(if $(filter gpu,$(FAISS)),faiss-cpu,faiss-gpu)
BENCHMARKS := tests/benchmarks
# Files start in the order of tests/conftest.py: xdist would start those with the fewest tests, which take longest, last.
SIDE_BY_SIDE = -n $(JOBS) --dist loadfile --no-loadscope-reorder
# Without bytecode, every process would compile the project and rewrite the tests' assertions again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast coverage chaos test-gpu lint format bench constraints clean

help:  ## Lists the targets.
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## Makes .venv with everything that is needed (TORCH=cpu spares CUDA, FAISS=gpu).

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Freshet needs Python 3.11 or newer; $(PYTHON) is not. Try: make install PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	@# Both wheels hold the module faiss: the other one must go first.
	$(BIN)/uv pip uninstall --quiet --python $(BIN)/python $(OTHER_FAISS)
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python $(if $(filter-out default,$(TORCH)),--torch-backend $(TORCH)) \
	  -c constraints.txt -e '.[$(FAISS),broker,evaluation,dev]'
	@rm -f .venv/.installed-*
	@touch $@

demo: install  ## The whole loop on this machine: Kafka, training, refreshes, recommendations (ARGS="--chaos").
	$(FRESHET) demo $(ARGS)

test: install  ## Every test that needs no GPU (ARGS="-k name"; JOBS=0: one after another).
	$(BIN)/pytest -m "not gpu" $(SIDE_BY_SIDE) $(ARGS)

test-fast: install  ## Unit and property tests only.
	$(BIN)/pytest $(SIDE_BY_SIDE) tests/unit tests/property $(ARGS)

coverage: install  ## Lines that the tests without Kafka and Ray leave out (ARGS="tests/integration" measures others).
	$(BIN)/pytest -m "not gpu" $(SIDE_BY_SIDE) --cov --cov-report=term-missing:skip-covered $(or $(ARGS),tests/unit tests/property tests/device)

chaos: install  ## Kills, full disks, flipped bits under the worker loop (KILLS=500), or from outside (MODE=black-box ROUNDS=16).
ifeq ($(MODE),black-box)
	$(BIN)/python -m tests.chaos.black_box --rounds $(ROUNDS) --report $(REPORT) $(ARGS)
else
	$(BIN)/python -m tests.chaos.campaign --kills $(KILLS) --report $(REPORT) $(ARGS)
endif

test-gpu:  ## What needs a GPU: tests and figures, to gpu-report.json (docs/guide/gpu.md; FRESHET_TEST_DEVICE=cpu rehearses).
	@$(or $(wildcard $(BIN)/python),$(PYTHON)) -m tests.gpu $(ARGS)

lint: install  ## Style, types and layers.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install  ## Formats the code and sorts imports.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: install  ## Lists the benchmarks, or runs one: make bench NAME=step ARGS="--json out.json".
ifeq ($(NAME),)
	@$(BIN)/python -c 'import ast, pathlib; [print(f"  make bench NAME={p.stem:14}", (ast.get_docstring(ast.parse(p.read_text())) or "").partition("\n")[0]) for p in sorted(pathlib.Path("$(BENCHMARKS)").glob("[a-z]*.py"))]'
else
	$(BIN)/python $(BENCHMARKS)/$(NAME).py $(ARGS)
endif

constraints: install  ## Pins the newest versions that fit pyproject.toml into constraints.txt.
	{ for faiss in cpu gpu; do \
	    $(BIN)/uv pip compile --quiet --universal --no-emit-index-url --no-header --no-annotate --upgrade \
	      --extra $$faiss --extra broker --extra evaluation --extra dev pyproject.toml; done; echo "uv==$$($(BIN)/uv --version | cut -d' ' -f2)"; \
	} | sort -u > constraints.new
	mv constraints.new constraints.txt

clean:  ## Removes what was built and cached; keeps .venv and runs/.
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
