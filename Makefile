# The one door to the project; `make help` lists the targets. A fresh machine needs python3, g++ and make:
# the virtual environment and the native build are made, and made again when their sources change.
PYTHON   ?= python3
VENV     ?= .venv
SANITIZE ?= address,undefined
CUDA     ?= 13

BIN    := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
NATIVE := $(shell find include src -type f 2>/dev/null)
STRESS := $(patsubst tests/cpp/%.cpp,build/cpp/%,$(wildcard tests/cpp/stress_*.cpp))
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-build-isolation

.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: demo test test-core test-emulator test-adapters test-installs test-gpu has-driver lint format bench bench-gpu bench-peers bench-frameworks bench-accounting bench-distances sanitize torture wheel clean help

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*  ## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

demo: $(VENV)/.extra-cli $(VENV)/.built  ## make a click log, train on it, evict, save, reload and verify, in under 3 minutes
	$(BIN)/python -m embstore demo

test: test-emulator test-adapters test-core  ## all tests but the torture

test-core: $(VENV)/.extra-test $(VENV)/.built  ## the contract on both engines, the policies and the tools (6 minutes)
	$(PYTEST) -m "not torture" --ignore=tests/emulator --ignore=tests/adapters

test-emulator: $(VENV)/.extra-test $(VENV)/.built  ## the GPU engine on the CPU emulator
	$(PYTEST) -m "not torture" tests/emulator

# Processes of their own: tests of PyTorch fork, which JAX and TensorFlow's threads may not survive.
test-adapters: $(VENV)/.extra-adapters $(VENV)/.built  ## the adapters, each with its framework, which is installed first
	$(PYTEST) -m "not torture" tests/adapters --ignore=tests/adapters/contract --ignore-glob='*/test_tensorflow_*' --ignore-glob='*/test_jax_*'
	$(PYTEST) -m "not torture" tests/adapters/test_tensorflow_*.py
	$(PYTEST) -m "not torture" tests/adapters/contract tests/adapters/test_jax_*.py

test-installs:  ## pip install ., -e ., wheel and sdist in clean environments, for each Python found
	$(PYTHON) .ci/installs.py

test-gpu: has-driver $(VENV)/.extra-test $(VENV)/.extra-cuda$(CUDA) $(VENV)/.built  ## the CUDA engine on a card, with compute-sanitizer where it is (CUDA=12 for older drivers)
	@.ci/test-gpu $(BIN)/python

# Before hundreds of megabytes are installed for nothing; the line is es.cuda_status().message.
has-driver:
	@$(PYTHON) -c 'import ctypes; ctypes.CDLL("libcuda.so.1")' 2>/dev/null || { echo "there is no NVIDIA driver (libcuda.so.1) on this machine" >&2; exit 1; }

lint: $(VENV)/.extra-lint $(VENV)/.built  ## ruff, mypy, stubtest, clang-format, cython-lint, C++ warnings, forbidden calls
	PATH="$(abspath $(BIN)):$$PATH" .ci/lint

format: $(VENV)/.extra-lint  ## write the sources as `make lint` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find include src tests bench -type f -name '*.[ch]' -o -name '*.cpp' -o -name '*.cc' -o -name '*.cu' 2>/dev/null | xargs $(BIN)/clang-format -i

bench: $(VENV)/.extra-bench $(VENV)/.built  ## benchmarks, printed as ratios (20 minutes, 20 GB); make bench ARGS="lookup --quick"
	$(BIN)/python -m bench $(ARGS)

bench-gpu: has-driver $(VENV)/.extra-cuda$(CUDA) $(VENV)/.built  ## the CUDA engine on a card, beside its floor (9 minutes); ARGS="--quick" or "--hkv PATH"
	$(BIN)/python -m bench gpu $(ARGS)

bench-peers: $(VENV)/.extra-bench $(VENV)/.built  ## build the environments of TFRA, FBGEMM and TorchRec (5 GB), and measure beside them
	$(BIN)/python -m bench.peers
	$(BIN)/python -m bench peers torch $(ARGS)

bench-frameworks: $(VENV)/.extra-bench $(VENV)/.extra-adapters $(VENV)/.built  ## the adapters of TensorFlow, JAX and Keras beside each one's own layers; builds TFRA's environment (2 GB)
	$(BIN)/python -m bench.peers tfra
	$(BIN)/python -m bench frameworks $(ARGS)

bench-accounting: $(VENV)/.extra-bench $(VENV)/.built  ## what keeping freq and step costs: a second build without it, in turn with ours
	CXXFLAGS="$(CXXFLAGS) -DEMB_BENCH_NO_ACCOUNTING" $(BIN)/python setup.py --quiet build --build-lib build/without-accounting
	$(BIN)/python -m bench accounting $(ARGS)

bench-distances: $(VENV)/.extra-bench $(VENV)/.built  ## how far ahead to prefetch: builds with other distances, in turn with ours
	@for macro in PROBES_AHEAD=12 PROBES_AHEAD=48 ROWS_AHEAD=12 ROWS_AHEAD=48 FIND_CHUNK=1024 FIND_CHUNK=4096 UPDATES_AHEAD=4 UPDATES_AHEAD=16; do \
	  CXXFLAGS="$(CXXFLAGS) -DEMB_$$macro" $(BIN)/python setup.py --quiet build --build-lib build/distances/$$macro || exit 1; done
	$(BIN)/python -m bench distances $(ARGS)

sanitize: $(VENV)/.extra-test  ## test-core under SANITIZE=address,undefined (the default) or SANITIZE=thread
	PATH="$(abspath $(BIN)):$$PATH" .ci/sanitize $(SANITIZE)

torture: $(VENV)/.extra-test $(VENV)/.built $(STRESS)  ## the long tests: stress, kills, damage, fuzzing, faults in kernels; then the table of promises
	@for program in $(STRESS); do echo "$$program"; $$program || exit 1; done
	mkdir -p build
	$(BIN)/python -m embstore torture build --minutes 5 --seed 1
	$(PYTEST) -m "torture or promise" --ignore=tests/adapters

build/cpp/%: tests/cpp/%.cpp $(VENV)/.built
	@mkdir -p $(@D)
	$(CXX) -std=c++17 -O2 -pthread -Iinclude $< -o $@ -Lembstore -l:libembstore.so -Wl,-rpath,$(abspath embstore)

wheel: $(VENV)/.extra-lint  ## sdist and wheel into dist/, their contents checked
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || date +%s) $(BIN)/python -m build --outdir dist
	$(BIN)/python .ci/check_dist.py dist

clean:  ## remove everything that was built, the virtual environment too
	rm -rf build dist $(VENV) *.egg-info embstore/*.so .hypothesis .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One virtual environment; a stamp for each thing that was installed into it.

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("embstore needs Python 3.11 or newer; name one by make PYTHON=python3.11")'
	@echo "embstore: making $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { echo "embstore needs the module venv of Python; install it, e.g. 'apt install python3-venv'"; exit 1; }
	@touch $@

$(VENV)/.build-tools: pyproject.toml $(VENV)/.made
	@echo "embstore: installing build tools, embstore and what it needs into $(VENV)"
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' > $@.txt
	@$(PIP) -r $@.txt
	@touch $@

$(VENV)/.installed: setup.py $(VENV)/.build-tools
	@$(PIP) --editable .
	@touch $@

$(VENV)/.built: $(NATIVE) $(VENV)/.installed
	@$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

$(VENV)/.extra-%: $(VENV)/.installed
	@echo "embstore: installing the extra '$*' into $(VENV)"
	@$(PIP) 'embstore[$*]'
	@touch $@
