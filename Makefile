# make demo   everything, from an empty machine to the comparison of four mixtures
# make test   lint, types, tests
# make setup  only the virtual environment
# make demo DEMO=small   the same pipeline with the parameters of presets/small.yaml

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
DEMO ?=
# Test files at a time, each single-threaded.
JOBS ?= 2

# `python`, `torchrun`, `dvc` and `npm` in the pipeline's commands are those of the environment.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# A run is reproduced on this machine; nothing is reported anywhere.
export DVC_NO_ANALYTICS := 1

.PHONY: demo test test-browser test-gpu test-remote test-slurm setup check data lint types clean

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed; say make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	@echo "installing packages into $(VENV): 6.7 GB, two to ten minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

setup: $(READY)

data: $(READY)
	$(BIN)/python -m clip_mixtures sample --out data

check: $(READY)
	@$(BIN)/python stages/check.py --data

demo: $(READY)
	@start=$$(date +%s) && set -e && \
	$(BIN)/python -m clip_mixtures sample --out data && \
	if [ -n "$(DEMO)" ]; then $(BIN)/python -m clip_mixtures preset $(DEMO); fi && \
	$(BIN)/python stages/check.py --data && \
	$(BIN)/python stages/work.py && \
	echo && cat metrics/comparison.md && \
	echo "report: $(CURDIR)/report/index.html" && \
	if [ "$(DEMO)" = small ]; then echo "after one epoch these accuracies mean nothing; it shows that all works"; fi && \
	if [ -n "$(DEMO)" ]; then echo "params.yaml now holds preset $(DEMO), its run.mixtures included;" \
		"back to the sample: $(BIN)/python -m clip_mixtures preset sample." \
		"Lock files and metrics/ hold this run's results; to discard them with the parameters:" \
		"git checkout params.yaml dvc.lock pipeline metrics"; fi && \
	echo "make demo: $$(( $$(date +%s) - start )) s"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

test: lint types
	@start=$$(date +%s); OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile; status=$$?; \
	echo "make test: tests took $$(( $$(date +%s) - start )) s"; exit $$status

# Chromium or Chrome where there is one; skipped with a message where not.
test-browser: $(READY)
	$(BIN)/python -m pytest -m browser tests/test_browser.py

# An NVIDIA GPU where there is one; skipped with a message where not.
test-gpu: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m gpu tests/test_gpu.py

# A real S3 server on this machine, kills and faults.
test-remote: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-s3.lock
	$(BIN)/python -m pytest -m s3 tests/test_s3.py

# A real SLURM of two nodes on this machine, where its packages may be installed.
test-slurm: $(READY)
	$(BIN)/python -m pytest -m slurm tests/test_slurm.py

clean:
	git clean -fdXq build
	rm -rf report scratch dvc_plots .data-building-*
