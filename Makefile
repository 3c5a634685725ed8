# Everything is built in .venv from pyproject.toml and the versions in constraints.txt.
#
#   make demo    ARGS="--members 20"     the whole story: forecast, assimilate, verify
#   make test    ARGS="tests/sphere"     the tests
#   make lint | tutorials | twins | docs | constraints | clean
#   make PYTHON=python3.12 test          with a Python of your choice, 3.11 or newer

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:
.DELETE_ON_ERROR:

VENV ?= .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python -m
ARGS ?=
WORKERS ?= 2
TUTORIALS := $(sort $(wildcard tutorials/[0-9]*.py))
EXTRAS := all test lint tutorials docs

# Without bytecode each run would compile every dependency anew: seconds per import.
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export NO_MKDOCS_2_WARNING := 1

.PHONY: help demo test lint tutorials twins docs constraints clean FORCE

help:
	@sed -n 's/^#  //p' Makefile

demo: $(VENV)/.installed-all
	$(RUN) skyens.demo $(ARGS)

# Workers of one thread each: more threads would only fight over the cores.
test: export OMP_NUM_THREADS := 1
test: export OPENBLAS_NUM_THREADS := 1
test: export XLA_FLAGS := --xla_cpu_multi_thread_eigen=false $(XLA_FLAGS)
# Most of the time goes into compiling small functions: halve it.
test: export JAX_DISABLE_MOST_OPTIMIZATIONS := 1
test: $(VENV)/.installed-test
	$(RUN) pytest --numprocesses $(WORKERS) --dist worksteal $(ARGS)

lint: $(VENV)/.installed-lint
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

tutorials: export MPLBACKEND := Agg
tutorials: $(VENV)/.installed-tutorials
	for tutorial in $(TUTORIALS); do echo "== $$tutorial"; time $(BIN)/python $$tutorial; done

# The notebook beside each tutorial; a single one is `make tutorials/NN_name.ipynb`.
twins: $(TUTORIALS:.py=.ipynb)
tutorials/%.ipynb: tutorials/%.py $(VENV)/.installed-tutorials FORCE
	$(BIN)/python tutorials/twins.py $<

docs: $(VENV)/.installed-docs
	$(RUN) mkdocs build --strict

# Newest versions that agree, for every platform and Python, without any address.
constraints: $(VENV)/.created
	$(RUN) pip install uv
	{ echo "# Versions for Python 3.11 and newer, written by \`make constraints\`."; \
	  $(RUN) uv pip compile pyproject.toml --universal --python-version 3.11 --quiet \
	    $(EXTRAS:%=--extra %) --no-header --no-annotate --no-emit-index-url; \
	} > constraints.new
	mv constraints.new constraints.txt

# What was built, not what was computed: demo_output stays.
clean:
	rm -rf $(VENV) site dist
	rm -rf .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

# Of python3, python3.13, ... the first that is new enough, unless PYTHON says which.
PYTHON_IS_NEW := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
$(VENV)/.created:
	@for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	    if "$$python" $(PYTHON_IS_NEW) 2>/dev/null; then \
	        echo "== $$("$$python" --version) makes $(VENV)"; \
	        "$$python" -m venv $(VENV); touch $@; exit 0; \
	    fi; \
	done; \
	echo "skyens needs Python 3.11 or newer, and neither python3 nor PYTHON is that:" \
	    "say which one to use, as in 'make PYTHON=/path/to/python3.12 test'." >&2; exit 1

$(EXTRAS:%=$(VENV)/.installed-%): $(VENV)/.installed-%: $(VENV)/.created pyproject.toml constraints.txt
	@echo "== installing skyens[$*] into $(VENV), a few minutes the first time"
	$(RUN) pip install $(if $(CI),--quiet) --editable ".[$*]" --constraint constraints.txt
	@touch $@

# A .venv of another Python would be used in silence.
ifneq ($(and $(PYTHON),$(wildcard $(BIN)/python)),)
version = $(shell $(1) -c 'import sys; print(*sys.version_info[:3], sep=".")' 2>/dev/null)
ifneq ($(call version,$(PYTHON)),$(call version,$(BIN)/python))
ifneq ($(MAKECMDGOALS),clean)
$(error $(VENV) has Python $(call version,$(BIN)/python): `make clean` before using $(PYTHON))
endif
endif
endif
