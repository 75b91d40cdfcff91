# Builds, shows, tests and checks convserve, in a virtual environment of its own.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
# PyPI's own build of PyTorch brings gigabytes for GPUs; torchvision's is small, and fits one version of PyTorch
TORCH := 2.13.0
TORCHVISION := 0.28.0
SOURCES := setup.py $(shell find convserve protos -name '*.pyx' -o -name '*.pxd' -o -name 'cs_*.[ch]' -o -name '*.proto')

.DEFAULT_GOAL := help
.PHONY: help build demo test torch lint conformance bench bench-memory bench-dense bench-scenes bench-server bench-workers fuzz soak huge train clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

build: $(VENV)/built ## make the virtual environment and build the extension

demo: build ## start a server, classify a digit, score a page of digits, write demo-out/page-scores.png
	$(PY) -m convserve demo

test: build $(VENV)/with-test ## run the whole test-suite
	$(PY) -m pytest

torch: build ## install PyTorch's CPU build, torchvision and onnxscript, which some tests compare with (1 GB)
	$(PIP) torch==$(TORCH)+cpu || $(PIP) --retries 0 --timeout 15 \
	  --extra-index-url https://download.pytorch.org/whl/cpu torch==$(TORCH)+cpu
	$(PIP) --no-deps torchvision==$(TORCHVISION)
	$(PIP) onnxscript

lint: build $(VENV)/with-lint ## check style and types
	$(PY) -m ruff check .
	$(PY) -m mypy convserve
	PATH="$(abspath $(VENV))/bin:$$PATH" cython-lint convserve

conformance: build $(VENV)/with-test ## run ONNX's own test-suite and count what passes; CONFORMANCE='--failures'
	$(PY) tests/conformance.py $(CONFORMANCE)

bench: build $(VENV)/with-bench ## time all networks beside ONNX Runtime and OpenVINO; BENCH='--networks vgg16 --runs 5'
	$(PY) -m benchmarks.run --json bench-out/bench.json --chart bench-out/bench.png $(BENCH)

bench-memory: build $(VENV)/with-bench ## measure what runs, maps and servers take, beside the same; MEMORY='--short'
	$(PY) -m benchmarks.memory --json bench-out/memory.json $(MEMORY)

bench-dense: build $(VENV)/with-bench ## score maps against crops, other strides, the same, and huge scenes; DENSE='--cases ways'
	$(PY) -m benchmarks.dense --json bench-out/dense.json $(DENSE)

bench-scenes: build $(VENV)/with-bench ## score 16384x16384 pixels by rows, here and through a server; SCENES='--side 4096'
	$(PY) -m benchmarks.scenes $(SCENES)

bench-server: build $(VENV)/with-bench .venv-serving/made ## ask servers as fast as they answer, beside MLServer and twenty lines; SERVER='--short'
	$(PY) -m benchmarks.serving --json bench-out/serving.json $(SERVER)

bench-workers: build $(VENV)/with-bench .venv-serving/made ## ask servers with one and with two worker processes in turn; WORKERS='--workers 1 2 4'
	$(PY) -m benchmarks.workers $(WORKERS)

fuzz: build $(VENV)/with-test ## damage files, pictures and a server's requests for five minutes; FUZZ='--seconds 60 --seed 1'
	$(PY) tests/fuzz.py $(FUZZ)

soak: build $(VENV)/with-test ## ask a server good and bad things for ten minutes, watching memory and descriptors; SOAK='--seconds 60'
	$(PY) tests/soak.py $(SOAK)

huge: build $(VENV)/with-test ## run through a ring of more than 2^31 values (takes 11 GiB of memory, half a minute)
	$(PY) tests/huge.py

train: build $(VENV)/with-train ## train the bundled network again and draw its samples again (needs PyTorch)
	$(PY) -m training.train_digits
	$(PY) -m training.make_samples

clean: ## remove everything that was built
	rm -rf $(VENV) .venv-serving build *.egg-info demo-out bench-out
	find convserve -name '*.so' -delete

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'convserve needs Python 3.11 or newer; PYTHON=/path/to/python3 make ... takes another one' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo 'this python3 cannot make virtual environments: apt-get install python3-venv' >&2; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig, sys; \
	  sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || \
	  { echo 'the headers of python3 are missing: apt-get install python3-dev' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

# Requirements are read from pyproject.toml: those of the build, or an extra's.
$(VENV)/with-%: $(VENV)/made pyproject.toml
	$(PY) -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb")); \
	  groups = {"build": project["build-system"]["requires"], **project["project"]["optional-dependencies"]}; \
	  print(*groups["$*"], sep="\n")' > $(VENV)/$*.txt
	$(PIP) -r $(VENV)/$*.txt
	touch $@

# MLServer's own requirements fit no newer uvloop, and would not fit beside ours.
.venv-serving/made:
	$(PYTHON) -m venv .venv-serving
	.venv-serving/bin/python -m pip install --quiet --disable-pip-version-check \
	  mlserver 'uvloop<0.22' onnxruntime 'tritonclient[grpc]' pillow
	touch $@

# The build requirements lie in the environment itself, so that a later build compiles only what changed.
$(VENV)/installed: $(VENV)/with-build pyproject.toml
	$(PIP) --no-build-isolation -e .
	touch $@

$(VENV)/built: $(VENV)/installed $(SOURCES)
	$(PY) setup.py --quiet stubs build_ext --inplace
	touch $@
