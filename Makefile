# `make` alone lists what there is. Every target sets up all it needs in a virtual environment of its
# interpreter: .venv, or .venv-3.12 for `make test PYTHON=python3.12`. Nothing else is touched.

PYTHON ?= python3# the interpreter, 3.11 or newer
JAX ?=# a version of jax to test with, such as 0.11.2; otherwise the newest for the interpreter
JOBS ?= 2# processes that run the tests
ARGS ?=# passed on to pytest, to the example, or to each benchmark

# Empty where PYTHON cannot be run: setup-% then says what to do.
PYTHON_VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(PYTHON_VERSION))$(JAX:%=-jax-%)
BIN := $(VENV)/bin

.DEFAULT_GOAL := help

.PHONY: help
help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@awk -F ' \\?=.*# ?' '/^[A-Z]+ \?=.*#/ { printf "  %-19s %s\n", $$1 "=...", $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: setup-examples ## train a language model in bf16, int8, fp8 and nvfp4, side by side
	$(BIN)/python examples/train_lm.py --compare --out demo-out $(ARGS)

.PHONY: test
test: setup-test ## run the tests; a part: make test ARGS="tests/numerics -m 'not slow'"
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)
	$(BIN)/lit -s -j $(JOBS) lit_tests

.PHONY: test-all
test-all: export SRJIT_NIGHTLY = 1
test-all: test mutants ## test and mutants, also crossing everything with everything, and measuring: hours

.PHONY: test-compiled
test-compiled: export SRJIT_AS_USERS_COMPILE = 1
test-compiled: setup-test ## the tests that compare bits, with XLA's default flags: as users compile
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m bits $(ARGS)

.PHONY: mutants
mutants: setup-test ## plant each mistake of tests/mutants: its tests have to fail
	PYTHONPATH=tests:. $(BIN)/python -m mutants.run --jobs $(JOBS)

.PHONY: lint
lint: setup-test ## check format and style (ruff)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

.PHONY: format
format: setup-test ## mend format, and style where that can be done by machine (ruff)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: types
types: setup-test ## check types (pyright, strict)
	$(BIN)/pyright --pythonpath $(BIN)/python

.PHONY: lit
lit: setup-test ## run the FileCheck tests of the passes (lit)
	$(BIN)/lit -v -j $(JOBS) lit_tests

.PHONY: docs
docs: setup-docs ## write docs/passes.md from the passes, and build the documentation into site/
	$(BIN)/python -m srjit.tools.pass_docs > docs/passes.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.PHONY: bench
bench: setup-test ## run all benchmarks, one after the other; each prints ratios
	@set -e; for program in benchmarks/[a-z]*.py; do \
	    echo "== $$program"; $(BIN)/python $$program $(ARGS); \
	done

.PHONY: clean
clean: ## remove what was built, and the virtual environments
	rm -rf .venv .venv-* build dist *.egg-info

# srjit itself (editable) with some of pyproject.toml's extras. A stamp for each extra makes the second
# run instant. The environment is made anew if its interpreter has vanished or changed its version, or
# if the checkout has moved, and installed into again if pyproject.toml has changed.
setup-docs: EXTRAS := docs
setup-examples: EXTRAS := examples
setup-test: EXTRAS := test examples

.PHONY: setup-docs setup-examples setup-test
setup-docs setup-examples setup-test:
	@case "$(PYTHON_VERSION)" in \
	    3.1[1-9]|3.[2-9][0-9]) ;; \
	    *) echo "$(PYTHON) is not a Python 3.11 or newer that runs (version: $(or $(PYTHON_VERSION),none));" \
	           "name one: make ... PYTHON=python3.12" >&2; exit 1;; \
	esac; \
	made_for='$(PYTHON_VERSION) in $(CURDIR)'; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1 || \
	        [ "$$(cat $(VENV)/made-for 2>/dev/null)" != "$$made_for" ]; then \
	    echo "making $(VENV) with Python $(PYTHON_VERSION)"; \
	    $(PYTHON) -m venv --clear $(VENV) || { \
	        echo "$(PYTHON) cannot make virtual environments (Debian, Ubuntu: apt install python3-venv)" >&2; \
	        exit 1; }; \
	    echo "$$made_for" > $(VENV)/made-for; \
	fi; \
	stale=; \
	for extra in $(EXTRAS); do \
	    stamp=$(VENV)/has-$$extra; \
	    if [ ! -e $$stamp ] || [ pyproject.toml -nt $$stamp ]; then stale=yes; fi; \
	done; \
	if [ "$$stale" ]; then \
	    extras=$$(echo $(EXTRAS) | tr ' ' ,); \
	    echo "installing srjit[$$extras] into $(VENV); the first time this takes some minutes"; \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$$extras]" \
	        $(JAX:%=jax==%) || exit 1; \
	    for extra in $(EXTRAS); do touch $(VENV)/has-$$extra; done; \
	fi
