# One command of each kind. Every target sets up what it needs in the virtual environment .venv; nothing is installed
# elsewhere. Needed beforehand: Rust, and Python with its venv module (versions in Cargo.toml and pyproject.toml).

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
export TIMEFORMAT := ==== %0R s
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# rustup's place, for shells that have not been told yet.
export PATH := $(PATH):$(HOME)/.cargo/bin

VENV := .venv
PY := $(VENV)/bin/python
# Interpreters to try, the first that is new enough is taken; `make PYTHON=/usr/bin/python3.13 test` names one.
PYTHON ?=
PYTHONS := $(or $(PYTHON),python3 python python3.14 python3.13 python3.12 python3.11)
# `make bench`: the folder of the peers (made by `make bench-peers`), an interpreter that has them if it is another than
# that folder's, options of benchmarks/bench.py, and the page that a whole run is written into (empty: none).
BENCH_PEERS ?= target/bench-peers
BENCH_PYTHON ?= $(or $(wildcard $(BENCH_PEERS)/bin/python),$(PY))
BENCH_OPTIONS ?=
BENCH_PAGE ?= docs/performance.md
# `make bench-check`: `write` makes the record of the kernels anew.
BENCH_CHECK ?= compare
BENCH_PATH := PYTHONPATH=target/bench:.
# `make account`: options of benchmarks/account.py; the page is the same.
ACCOUNT_OPTIONS ?=
# More options for pytest, for instance PYTEST_OPTIONS="-x -k masks".
PYTEST_OPTIONS ?=
# Clippy and the crate's tests with feature "python" link against the interpreter that the wheel is for.
CARGO := PYO3_PYTHON=$(CURDIR)/$(PY) cargo
SOURCES := Cargo.toml Cargo.lock pyproject.toml README.md $(shell find src python -type f -not -path '*/__pycache__/*' -not -name '*.so')

.PHONY: help demo test test-old-cpu bench bench-check bench-peers account lint format docs develop wheel golden clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## fetch MiniLM, compare sentences, show which word each head links "it" to
	$(PY) examples/demo.py

test: rust ## everything that CI checks: lints, types, docstrings, the crate's tests, pytest on each instruction set
	@$(MAKE) -j2 test-rust $(VENV)/.installed $(VENV)/.test
	@$(MAKE) lint-python
	@$(MAKE) test-python

test-old-cpu: $(VENV)/.installed $(VENV)/.test ## import and compute on emulated old CPUs (needs qemu-x86_64)
	$(PY) -m pytest -v tests/test_old_cpu.py $(PYTEST_OPTIONS)

bench: minilm target/bench ## measure beside the machine's limits and the peers that are here; writes docs/performance.md
	$(BENCH_PATH) $(BENCH_PYTHON) -m benchmarks.bench --forms $(BENCH_PEERS)/forms \
	  $(if $(BENCH_PAGE),--write $(BENCH_PAGE)) $(BENCH_OPTIONS)

bench-check: rust $(VENV)/pyvenv.cfg ## see a slower kernel: count instructions (needs valgrind), compare with benchmarks/kernels.json
	$(PY) -m benchmarks.check $(BENCH_CHECK)

bench-peers: minilm target/bench ## set up the peers of `make bench` in target/bench-peers (some gigabytes)
	$(BENCH_PATH) benchmarks/setup_peers.sh $(BENCH_PEERS) $(PY)

account: minilm target/bench target/account ## say where the time of models goes between the machine's peak and what is reached
	$(BENCH_PATH) $(PY) -m benchmarks.account $(if $(BENCH_PAGE),--write $(BENCH_PAGE)) $(ACCOUNT_OPTIONS)

lint: lint-rust lint-python ## formatters and linters of both languages, layers, types, stubs, docstrings

format: rust $(VENV)/.test ## format the sources of both languages
	cargo fmt
	$(PY) -m ruff check --fix-only --quiet .
	$(PY) -m ruff format --quiet .

docs: $(VENV)/.docs $(VENV)/.installed ## build the documentation into docs/_build/html; a warning is an error
	$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

develop: rust $(VENV)/.test ## build for development: editable, with debug assertions and little optimisation
	rm -f $(VENV)/.installed
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(VENV)/bin/maturin develop --locked --quiet

wheel: $(VENV)/.build rust ## build the release wheel into dist/
	rm -f dist/headwise-*.whl
	$(VENV)/bin/maturin build --release --locked --quiet --interpreter $(PY) --out dist
	@ls -l dist/headwise-*.whl

golden: minilm $(VENV)/.test ## write the golden file of bit patterns anew (only when the law itself changes)
	$(PY) tests/golden/make_bits.py

clean: ## remove everything that was built, .venv too
	rm -rf $(VENV) target dist docs/_build docs/generated .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f python/headwise/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- the parts of lint and test --------------------------------------------------------------------------------------

.PHONY: rust minilm lint-rust lint-python test-rust test-python test-isas

rust:
	@command -v cargo >/dev/null || { echo "headwise is built with Rust, and there is no cargo here: see https://rustup.rs" >&2; exit 1; }

minilm: $(VENV)/.installed
	$(VENV)/bin/headwise fetch minilm

lint-rust: rust $(VENV)/.build
	time cargo fmt --check
	time $(PY) tests/check_layers.py
	time $(CARGO) clippy --locked --all-targets --quiet -- -D warnings
	time $(CARGO) clippy --locked --features python --quiet -- -D warnings
	time $(CARGO) clippy --locked --features python,account --quiet -- -D warnings
	time RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items --quiet

test-rust: lint-rust
	time $(CARGO) test --locked --quiet

lint-python: $(VENV)/.installed $(VENV)/.test
	time $(PY) -m ruff check --quiet .
	time $(PY) -m ruff format --check --quiet .
	time $(PY) -m mypy
	time $(PY) -m mypy.stubtest headwise._core --mypy-config-file pyproject.toml
	time $(PY) tests/check_docstrings.py

# The instruction sets that are not the machine's best come first, so that the last lines are the summary of the whole.
test-python: test-isas
	time $(PY) -m pytest $(PYTEST_OPTIONS)

test-isas: minilm $(VENV)/.test
	@others=$$($(PY) -c 'import headwise as hw; print(*{*hw.show_config(mode="dicts")["available_isas"]} - {hw.isa()})'); \
	for isa in $$others; do \
	  echo "HEADWISE_ISA=$$isa pytest -m 'not once'"; \
	  time HEADWISE_ISA=$$isa $(PY) -m pytest -q -m 'not once' -n 2 $(PYTEST_OPTIONS); \
	done

# ---- the environment -------------------------------------------------------------------------------------------------

$(VENV)/pyvenv.cfg:
	@for python in $(PYTHONS); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    "$$python" -m venv $(VENV) && exit 0; \
	    echo "$$python could not make a virtual environment (on Debian: apt install python3-venv)" >&2; exit 1; \
	  fi; \
	done; \
	echo "headwise needs Python 3.11 or later, tried: $(PYTHONS)" >&2; exit 1

$(VENV)/.build: requirements/build.txt $(VENV)/pyvenv.cfg
	time $(PY) -m pip install --quiet -r $<
	@touch $@

$(VENV)/.test: requirements/test.txt $(VENV)/.build
	time $(PY) -m pip install --quiet -r $<
	@touch $@

$(VENV)/.docs: requirements/docs.txt $(VENV)/.test
	time $(PY) -m pip install --quiet -r $<
	@touch $@

# The wheel unpacked, to be imported by another interpreter than that of .venv.
target/bench: $(VENV)/.installed
	rm -rf $@
	$(PY) -m pip install --quiet --no-deps --target $@ dist/headwise-*.whl
	@touch $@

# The same with clocks in the kernels; built apart, so that neither build undoes the other.
target/account: $(VENV)/.installed
	rm -rf $@ target/account-wheel
	$(VENV)/bin/maturin build --release --locked --quiet --interpreter $(PY) --features python,account \
	  --target-dir target/account-build --out target/account-wheel
	$(PY) -m pip install --quiet --no-deps --target $@ target/account-wheel/headwise-*.whl
	@touch $@

$(VENV)/.installed: $(SOURCES) $(VENV)/.build | rust
	time $(MAKE) wheel
	@rm -f python/headwise/*.so
	$(PY) -m pip install --quiet --no-deps --force-reinstall dist/headwise-*.whl
	@touch $@
