# make demo and make test do all the set-up on a machine that has Python (3.11 or newer), make and git.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# One thread: the networks are small, and two threads on two busy cores only wait for each other.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint check format clean help

help:
	@echo "make demo    train on VMAS navigation under three sharings; results in runs/navigation"
	@echo "make test    tests and properties"
	@echo "make lint    ruff and pyright"
	@echo "make check   what CI runs: lint and test"

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python examples/navigation.py $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

check: lint test

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) runs dist .pytest_cache .ruff_cache .hypothesis
