# These targets set up everything on a machine with Python, pip, make and git:
#   make demo       install, generate sample data, train, evaluate, draw images
#                   (MODEL=mask_rcnn or another file of configs/demo)
#   make test       install, lint, check types, run the default tests: eight minutes on two cores
#   make test-all   the same, then all other tests but those of the web page
#   make docs       build the documentation site in docs/_build, with warnings as errors
#   make coverage   the default tests under coverage; MARKERS='not web' for all tests
# The installation in $(VENV) is made once; the next call repairs an interrupted one.

PYTHON ?= python3
VENV ?= .venv
# The extra of pyproject.toml with the packages of OpenMMLab: onedl or openmmlab.
STACK ?= onedl
MODEL ?= mask_rcnn
# The arguments of pip to install PyTorch. For a GPU, for example:
#   make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130"
TORCH ?= torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
# Processes that run tests, each with one thread.
JOBS ?= logical
# Seconds after which "make test-rest" starts no further test.
BUDGET ?= 7200
MARKERS ?=

BIN := $(VENV)/bin
EXPORT := $(VENV)/.export
DOCS := $(VENV)/.docs
READY := $(VENV)/.ready-$(shell printf '%s' '$(STACK) $(TORCH)' | cksum | cut -d' ' -f1)
PYTEST := -m pytest -q -n $(JOBS) --maxprocesses 8

.PHONY: demo test test-all test-rest lint types docs coverage clean

demo: $(READY)
	$(BIN)/python tools/demo.py $(MODEL)

test: lint types
	$(BIN)/python $(PYTEST) --dist loadfile

test-all: test test-rest

test-rest: $(EXPORT)
	$(BIN)/python $(PYTEST) --dist worksteal --budget $(BUDGET) \
	    -m '(e2e or export or packaging or slow or triton) and not web'

lint: $(READY)
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/lint-imports
	$(BIN)/codespell

types: $(READY)
	$(BIN)/mypy

docs: $(DOCS)
	$(BIN)/python -m sphinx -q -E -W --keep-going docs docs/_build
	@echo "The site is docs/_build/index.html."

coverage: $(READY)
	$(BIN)/coverage erase
	$(BIN)/coverage run $(PYTEST) --dist loadfile $(if $(MARKERS),-m '$(MARKERS)')
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Without the mark of a complete installation, the environment is created again.
# Debian's Python has venv without pip; then the system's pip installs pip there.
$(READY): pyproject.toml setup.py
	@test -e $@ || $(PYTHON) -m venv --clear $(VENV) 2> /dev/null || \
	    { $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	    $(PYTHON) -m pip --python $(BIN)/python install -q pip; }
	@rm -f $(VENV)/.ready-*
	$(BIN)/python -m pip install -q --retries 1 --no-deps $(TORCH)
	$(BIN)/python -m pip install -q -e '.[$(STACK),test]'
# opencv-python needs the system's libGL, which servers lack; opencv-python-headless does not.
	@$(BIN)/python -c 'import cv2' 2> /dev/null || $(BIN)/python -m pip install -q \
	    --force-reinstall --no-deps "opencv-python-headless==$$($(BIN)/python -c \
	    'from importlib.metadata import version; print(version("opencv-python"))')"
	@$(BIN)/python -W ignore -c 'import mmfocalnet, mmdet.models, mmseg.models'
	@touch $@

# The packages of the extra "export", which the default tests do without.
$(EXPORT): $(READY)
	$(BIN)/python -m pip install -q -e '.[$(STACK),test,export]'
	@touch $@

$(DOCS): $(READY)
	$(BIN)/python -m pip install -q -e '.[$(STACK),test,docs]'
	@touch $@

clean:
	rm -rf $(VENV) docs/_build work_dirs data/shapes
