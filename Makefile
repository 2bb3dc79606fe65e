# Everything a newcomer needs: `make demo`, `make test`. Both build .venv from the exact pins first.
PYTHON ?= python3
VENV := .venv
# What is pinned besides the packages that training needs; `bench` is for scripts/benchmark.py alone.
EXTRAS := figures detection export slurm prepare dev
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-fast check lock
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	bash scripts/demo.sh $(VENV)/bin/python

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest

# Without the tests that start programs or build every network: under two minutes on two cores.
test-fast: $(INSTALLED)
	$(VENV)/bin/python -m pytest tests/cbam/test_module.py tests/engine/comparison tests/engine/data tests/engine/tasks \
		tests/engine/training/test_trainer.py tests/models/test_weights.py tests/test_layers.py

# What continuous integration runs besides the tests.
check: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Pins with hashes, for every platform, from pyproject.toml (needs uv: https://docs.astral.sh/uv).
lock:
	uv pip compile --universal --python-version 3.11 $(EXTRAS:%=--extra %) --generate-hashes --upgrade \
		--no-header --no-annotate --no-emit-index-url --output-file requirements.lock pyproject.toml

$(INSTALLED): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $(PYTHON) is older than Python 3.11; run make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --require-hashes --requirement requirements.lock
	@touch $@
