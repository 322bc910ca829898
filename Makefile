# make demo and make test install everything on a machine that has Python (3.11 or newer), make and git.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# One thread: the networks are small, and two threads on two busy cores mostly wait for each other.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test compat lint check architecture bench bench-jax benchmarl findings mutation format clean help

help:
	@echo "make demo          train on VMAS navigation under three sharings; results in runs/navigation"
	@echo "make test          tests and properties"
	@echo "make lint          ruff and pyright"
	@echo "make check         what CI runs: lint and test"
	@echo "make format        format the code, and repair what ruff can repair"
	@echo "make architecture  draw docs/architecture.svg and write the table in ARCHITECTURE.md, from the imports"
	@echo "make bench         the benchmarks; ARGS=--quick takes 2 minutes; make bench-jax adds jitted JAX"
	@echo "make compat        the tests with the oldest and the newest torch, in new environments: an hour"
	@echo "make findings      run the laws on released libraries and write findings/FINDINGS.md"
	@echo "make mutation      test the tests: change the code, see them fail: an hour; make mutation-random: one module"
	@echo "make benchmarl     run BenchMARL's models and tests on our classes, in a new environment"
	@echo "make clean         remove all environments and results"

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python examples/navigation.py $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto $(ARGS)

# Each environment takes several gigabytes and is removed after its row, unless KEEP=1. PYTHON= is the interpreter;
# ARGS="--only 2.15.0" runs one row.
compat:
	KEEP=$(KEEP) $(PYTHON) -m tools.compat $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

check: lint test

architecture: $(INSTALLED)
	$(BIN)/python -m tools.architecture

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.run $(ARGS)
	$(BIN)/python -m benchmarks.growth $(ARGS)

# JAX is installed in an environment of its own; then the benchmark rows against it run.
bench-jax: $(INSTALLED)
	test -d .venv-jax || $(PYTHON) -m venv .venv-jax
	.venv-jax/bin/python -m pip install --quiet --disable-pip-version-check jax
	$(BIN)/python -m benchmarks.run --only jax $(ARGS)

# BenchMARL 1.5.2 needs torchrl 0.11. Its tests come with its source distribution and need torch_geometric.
BENCHMARL := .venv-benchmarl
BENCHMARL_PIP := $(BENCHMARL)/bin/python -m pip --quiet --disable-pip-version-check

benchmarl: $(BENCHMARL)/.installed
	$(BENCHMARL)/bin/python tools/benchmarl_check.py $(BENCHMARL)/benchmarl-1.5.2/test

$(BENCHMARL)/.installed: pyproject.toml
	test -d $(BENCHMARL) || $(PYTHON) -m venv $(BENCHMARL)
	$(BENCHMARL_PIP) install torch==2.13.0 torchrl==0.11.1 tensordict==0.11.0 torchvision==0.28.0 \
		vmas==1.5.2 hydra-core==1.3.8 torch_geometric optree pytest setuptools
	$(BENCHMARL_PIP) install --no-deps benchmarl==1.5.2
	$(BENCHMARL_PIP) install --no-deps -e .
	$(BENCHMARL_PIP) download --no-deps --no-binary benchmarl --no-build-isolation -d $(BENCHMARL) benchmarl==1.5.2
	tar xzf $(BENCHMARL)/benchmarl-1.5.2.tar.gz -C $(BENCHMARL)
	@touch $@

# The laws run on released libraries, some of them in environments of their own.
FINDINGS := .venv-findings
FINDINGS_PIP := $(FINDINGS)/bin/python -m pip --quiet --disable-pip-version-check

findings: $(INSTALLED) $(BENCHMARL)/.installed $(FINDINGS)/.installed
	$(BIN)/python findings/run.py $(ARGS)

$(FINDINGS)/.installed: findings/requirements.txt findings/libraries.txt
	test -d $(FINDINGS) || $(PYTHON) -m venv $(FINDINGS)
	$(FINDINGS_PIP) install -r findings/requirements.txt
	$(FINDINGS_PIP) install --no-deps -r findings/libraries.txt
	@touch $@

include properties/mutation.mk

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .venv-compat-* .venv-jax $(BENCHMARL) $(FINDINGS) $(MUTATION) runs dist .pytest_cache .ruff_cache .hypothesis
