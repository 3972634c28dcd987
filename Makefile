# Two commands do all the set-up on a machine with Python, pip, make and git:
#   make demo    install, draw sample data, train, evaluate, draw pictures
#                (MODEL=mask_rcnn or another file of configs/demo)
#   make test    install, lint, test
# Both install once, into $(VENV); an interrupted installation is repaired by the next call.

PYTHON ?= python3
VENV ?= .venv
MODEL ?= mask_rcnn
# What pip gets to install PyTorch. For a GPU, for example:
#   make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130"
TORCH ?= torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu

BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(shell printf '%s' '$(TORCH)' | cksum | cut -d' ' -f1)

.PHONY: demo test lint clean

demo: $(READY)
	$(BIN)/python tools/demo.py $(MODEL)

test: $(READY) lint
	$(BIN)/python -m pytest -q

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Without the mark of a finished installation the environment may be half there: start afresh.
# Debian's Python has venv without pip in it; then the system's pip puts one there.
$(READY): pyproject.toml setup.py
	@test -e $@ || $(PYTHON) -m venv --clear $(VENV) 2> /dev/null || \
	    { $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	    $(PYTHON) -m pip --python $(BIN)/python install -q pip; }
	@rm -f $(VENV)/.ready-*
	$(BIN)/python -m pip install -q --retries 1 --no-deps $(TORCH)
	$(BIN)/python -m pip install -q -e '.[onedl,test]'
# opencv-python needs the system's libGL, which servers lack; its headless twin does not.
	@$(BIN)/python -c 'import cv2' 2> /dev/null || $(BIN)/python -m pip install -q \
	    --force-reinstall --no-deps "opencv-python-headless==$$($(BIN)/python -c \
	    'from importlib.metadata import version; print(version("opencv-python"))')"
	@$(BIN)/python -W ignore -c 'import mmfocalnet, mmdet.models, mmseg.models'
	@touch $@

clean:
	rm -rf $(VENV) work_dirs data/shapes
