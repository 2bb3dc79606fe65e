# `make help` lists the targets. All but `help` and `lock` build .venv from the exact pins first.
PYTHON ?= python3
VENV := .venv
# The extras of pyproject.toml to pin; `bench` is only for scripts/benchmark.py.
EXTRAS := experiment figures detection timm export slurm prepare samples dev
INSTALLED := $(VENV)/.installed

.PHONY: help demo test test-fast check format lock
.DELETE_ON_ERROR:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: $(INSTALLED) ## install, and run a small version of the whole experiment: 5 to 10 minutes on two cores
	bash scripts/demo.sh $(VENV)/bin/python

test: $(INSTALLED) ## run all tests except the slow ones: about six minutes on two cores
	$(VENV)/bin/python -m pytest

test-fast: $(INSTALLED) ## run a fast subset of the tests: under two minutes
	$(VENV)/bin/python -m pytest tests/cbam/test_module.py tests/engine/comparison tests/engine/data tests/engine/tasks \
		tests/engine/training/test_trainer.py tests/models/test_weights.py tests/test_layers.py

check: $(INSTALLED) ## lint, and check formatting and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(INSTALLED) ## format the code and fix what ruff can fix
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Pins with hashes, for every platform, from pyproject.toml.
lock: ## update requirements.lock (needs uv: https://docs.astral.sh/uv)
	uv pip compile --universal --python-version 3.11 $(EXTRAS:%=--extra %) --generate-hashes --upgrade \
		--no-header --no-annotate --no-emit-index-url --output-file requirements.lock pyproject.toml

$(INSTALLED): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $(PYTHON) is older than Python 3.11; run make demo PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --require-hashes --requirement requirements.lock
	@# `import cbam` from any folder, as it is here; models and engine run from the clone
	ln -sfn "$(CURDIR)/cbam" "$$($(VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/cbam"
	@touch $@
