# These targets set up everything on a machine with Python, pip, make and git:
#   make demo       install, generate sample data, train, evaluate, draw images
#                   (MODEL=mask_rcnn or another file of configs/demo)
#   make test       install, lint, check types, run the default tests: eight minutes on two cores
#   make test-all   the same, then the other tests but those marked web or trial
#   make test-oldest or another of $(STACKS): the default tests with other versions of Python and
#                   packages
#   make docs       build the documentation site in docs/_build/html (Python 3.11 or later)
#   make coverage   the default tests under coverage; MARKERS='not web' for others, too
#   make release    build and check what a release contains, in dist/
#   make lock       write the lock files requirements/*.txt for the packages in pyproject.toml
#   make audit      search the lock files for known vulnerabilities
# The installation in $(VENV) is made once; the next call repairs an interrupted one.

PYTHON ?= python3
VENV ?= .venv
# The extra of pyproject.toml with the packages of OpenMMLab: onedl or openmmlab.
STACK ?= onedl
MODEL ?= mask_rcnn
CPU_INDEX := --index-url https://download.pytorch.org/whl/cpu
# The arguments of pip to install PyTorch. For a GPU, for example:
#   make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130"
TORCH ?= torch==2.13.0 $(CPU_INDEX)
# Packages that replace those of the lock file, with ==: the shell would redirect < and >.
PACKAGES ?=
# Processes that run tests, each with one thread.
JOBS ?= logical
# Seconds after which "make test-rest" starts no further test.
BUDGET ?= 7200
# Without it, "make lock" keeps the versions that still fit. --upgrade or --upgrade-package NAME.
UPGRADE ?=
MARKERS ?=

BIN := $(VENV)/bin
RELEASE := $(VENV)-release
CHECK := $(VENV)-check
EXPORT := $(VENV)/.export
DOCS := $(VENV)/.docs
READY := $(VENV)/.ready-$(shell printf '%s' '$(STACK) $(TORCH) $(PACKAGES)' | cksum | cut -d' ' -f1)
PYTEST := -m pytest -q -n $(JOBS) --maxprocesses 8

# Other supported stacks (docs/install.md), each in a separate environment, .venv-NAME, with the
# python3.x that is found first. pip warns of the limits of other packages that PACKAGES exceed.
STACKS := python3.10 python3.12 python3.13 oldest newest upstream upstream-oldest upstream-compiled
python3.10 := PYTHON=python3.10
python3.12 := PYTHON=python3.12
python3.13 := PYTHON=python3.13
oldest := PYTHON=python3.10 TORCH="torch==2.3.1 $(CPU_INDEX)" \
    PACKAGES="numpy==1.26.4 opencv-python-headless==4.11.* transformers==4.48.*"
newest := PYTHON=python3.13 TORCH="torch $(CPU_INDEX)" PACKAGES="numpy==2.5.* opencv-python-headless==5.*"
upstream := STACK=openmmlab PYTHON=python3.11 TORCH="torch==2.5.1 $(CPU_INDEX)"
upstream-oldest := STACK=openmmlab PYTHON=python3.10 TORCH="torch==2.1.2 $(CPU_INDEX)"
MMCV_WHEELS ?= https://download.openmmlab.com/mmcv/dist/cpu/torch2.1.0/index.html
upstream-compiled := $(upstream-oldest) \
    PACKAGES="--no-deps --only-binary mmcv --find-links $(MMCV_WHEELS) mmcv==2.1.0"

.PHONY: demo test test-all test-default test-rest lint types docs coverage release lock audit clean \
    $(STACKS:%=test-%)

demo: $(READY)
	$(BIN)/python tools/demo.py $(MODEL)

test: lint types test-default

test-default: $(READY)
	$(BIN)/python $(PYTEST) --dist loadfile

test-all: test test-rest

$(STACKS:%=test-%): test-%:
	$(MAKE) test-default VENV=.venv-$* STACK=onedl PACKAGES= $($*)

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
	rm -rf docs/_build/html
	$(BIN)/python -m sphinx -q -E -W --keep-going docs docs/_build/html
	@echo "The site is docs/_build/html/index.html."

coverage: $(READY)
	$(BIN)/coverage erase
	$(BIN)/coverage run $(PYTEST) --dist loadfile $(if $(MARKERS),-m '$(MARKERS)')
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Debian's Python has venv without pip; then the system's pip installs pip there.
new_venv = $(PYTHON) -m venv --clear $(1) 2> /dev/null || \
    { $(PYTHON) -m venv --clear --without-pip $(1) && \
    $(PYTHON) -m pip --python $(1)/bin/python install -q pip; }

# pip checks the hashes of all packages in a lock file.
install_locked = -m pip install -q --no-deps --no-build-isolation --require-hashes -r

# A new environment with PyTorch and the packages of a lock file. OpenMMLab's source distributions
# are built before PyTorch is there, because mmcv then compiles no operators. PyTorch for GPUs brings
# further packages.
define new_environment
@$(call new_venv,$(1))
$(1)/bin/python $(install_locked) requirements/build.txt
$(1)/bin/python $(install_locked) $(2)
$(1)/bin/python -m pip install -q --retries 1 $(TORCH)
endef

$(READY): requirements/build.txt requirements/$(STACK)-test.txt
	$(call new_environment,$(VENV),requirements/$(STACK)-test.txt)
	$(if $(PACKAGES),$(BIN)/python -m pip install -q $(PACKAGES))
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@$(BIN)/python -W ignore -c 'import mmfocalnet, mmdet.models, mmseg.models'
	@touch $@

# The packages of the extras "export" and "docs", which the default tests do without. They cannot be
# locked with those of upstream OpenMMLab for all versions of Python.
$(EXPORT) $(DOCS): $(VENV)/.%: $(READY) requirements/onedl-%.txt
	$(BIN)/python $(if $(filter onedl,$(STACK)),$(install_locked) requirements/onedl-$*.txt, \
	    -m pip install -q -e '.[$*]' 'numpy<2')
	@touch $@

$(RELEASE)/.ready: requirements/release.txt
	@$(call new_venv,$(RELEASE))
	$(RELEASE)/bin/python $(install_locked) requirements/release.txt
	@touch $@

# The wheel is installed in a new environment. The SBOM is written before mim is installed.
release: $(RELEASE)/.ready
	rm -rf dist
	$(RELEASE)/bin/python .ci/build_release.py dist
	$(RELEASE)/bin/twine check --strict dist/*
	$(call new_environment,$(CHECK),requirements/onedl.txt)
	$(CHECK)/bin/python -m pip install -q --no-deps --no-index --find-links dist mmfocalnet
	$(RELEASE)/bin/cyclonedx-py environment --output-file \
	    dist/mmfocalnet.cdx.json $(CHECK)/bin/python
	$(CHECK)/bin/python $(install_locked) requirements/mim.txt
	cd $(CHECK) && bin/mim list | grep mmfocalnet
	cd $(CHECK) && bin/mim search mmfocalnet | grep -c '^config id'
	cd $(CHECK) && bin/mim run mmfocalnet collect_env
	cd dist && sha256sum * > SHA256SUMS

LOCK := $(RELEASE)/bin/uv pip compile --quiet --universal --generate-hashes --no-annotate \
    --python-version 3.10 --custom-compile-command 'make lock' $(UPGRADE)
STACK_LOCK := $(LOCK) pyproject.toml --no-emit-package torch --group opencv --extra

lock: $(RELEASE)/.ready
	$(LOCK) --group build -o requirements/build.txt
	$(LOCK) --group release -o requirements/release.txt
	$(STACK_LOCK) onedl --group mim -o requirements/mim.txt
	$(STACK_LOCK) onedl --extra test --extra export -o requirements/onedl-export.txt
	$(STACK_LOCK) onedl --extra test -c requirements/onedl-export.txt -o requirements/onedl-test.txt
	$(STACK_LOCK) onedl --extra test --extra docs -c requirements/onedl-export.txt \
	    -o requirements/onedl-docs.txt
	$(STACK_LOCK) onedl -c requirements/onedl-export.txt -o requirements/onedl.txt
	$(STACK_LOCK) openmmlab --extra test -o requirements/openmmlab-test.txt

audit: $(RELEASE)/.ready
	ls requirements/*.txt | xargs -n 1 $(RELEASE)/bin/pip-audit --strict --disable-pip -r

clean:
	rm -rf $(VENV) $(RELEASE) $(CHECK) $(STACKS:%=.venv-%) dist docs/_build work_dirs data/shapes
