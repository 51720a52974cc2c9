# Two commands are enough: `make reproduce` and `make test`. Both set up what they need, once.
PYTHON ?= python3
SCALE ?= full
JOBS ?= 0
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
RUN := $(BIN)/python -m survey_lib
export SURVEY_DEVICE = $(or $(DEVICE),cpu)
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help:  ## print every target and setting
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  SCALE=quick|full  ONLY=03  SEEDS=0-4  DATASET=fashion_mnist|cifar10|my.npz  OUT=build  JOBS=2"
	@echo "  DASK=tcp://host:port  DEVICE=cpu|cuda"

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "survey_lib needs CPython 3.11 or newer, $(PYTHON) is %d.%d; run make PYTHON=python3.11" % v[:2])'
	@echo "setting up $(VENV): about 2 minutes and 6 GB"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: setup
setup: $(STAMP)  ## create .venv from requirements.lock (the other targets do it themselves)

.PHONY: lab
lab: $(STAMP)  ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks

.PHONY: reproduce
reproduce: $(STAMP)  ## run every notebook, write build/, compare with results/
	@$(RUN) reproduce --scale "$(SCALE)" --only "$(ONLY)" --seeds "$(SEEDS)" --dataset "$(DATASET)" --out "$(OUT)" --jobs $(JOBS) --dask "$(DASK)"

.PHONY: quick
quick:  ## the same at quick scale: digits, fewer seeds, a few minutes, into build/quick
	@$(MAKE) --no-print-directory reproduce SCALE=quick

.PHONY: verify
verify: $(STAMP)  ## compare build/ (or OUT=) with results/
	@$(RUN) verify --out "$(or $(OUT),build)"

.PHONY: cost
cost: $(STAMP)  ## minutes and memory of each table row: of build/ (or OUT=), else as published
	@$(RUN) cost --out "$(or $(OUT),build)"

.PHONY: publish
publish: $(STAMP)  ## make build/ (or OUT=) the published results and notebooks
	@$(RUN) publish --out "$(or $(OUT),build)"

.PHONY: records
records: $(STAMP)  ## make anew what rests on CITATION.cff and results/: metadata, list of files, costs
	@$(RUN) records

.PHONY: test
test: $(STAMP) lint unit  ## everything that .ci/run checks: style, unit tests, notebooks at quick scale
	@$(BIN)/python -m pytest -q -m slow tests
	@$(MAKE) --no-print-directory quick

.PHONY: unit
unit: $(STAMP)  ## the unit tests alone
	@$(BIN)/python -m pytest -q -m "not slow" -n 2 tests

.PHONY: lint
lint: $(STAMP)  ## ruff: format and rules
	@$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/ruff check --quiet .

.PHONY: bench
bench: $(STAMP)  ## client steps per second beside the plain loop and five peers, 25 minutes (BENCH=--quick: 8)
	@$(BIN)/python tests/bench/engine.py $(BENCH)

.PHONY: scale
scale: $(STAMP)  ## cost against devices, cohort, nodes and arrivals: seconds and memory, 2 minutes
	@$(BIN)/python tests/bench/scale.py

.PHONY: endurance
endurance: $(STAMP)  ## kills, damaged files, a full disk, two runs at once, at quick scale: about an hour
	@$(BIN)/python tests/endurance.py

.PHONY: lock
lock: $(STAMP)  ## compile requirements.lock anew from pyproject.toml
	@$(BIN)/uv --no-config pip compile pyproject.toml --quiet --extra dev --extra cluster --universal --python-version 3.11 --fork-strategy fewest --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links -o requirements.lock

.PHONY: clean
clean:  ## remove build/ and caches; .venv and downloaded data stay
	rm -rf build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./$(VENV)/*" -type d -exec rm -rf {} +
