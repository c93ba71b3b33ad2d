# What a person and CI run. Everything is installed into .venv; the engine is built by SwiftPM.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WHEELHOUSE := dist
# Python.h, for Swift; one place for both of SwiftPM's builds.
PYTHON_INCLUDE = $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')
# Most tests wait, for processes and for time; a file's tests stay together, as they share fixtures. A
# process of tests that ends (see faulthandler_timeout) ends the run: xdist would wait for its tests.
IN_PARALLEL = -n 4 --dist loadfile --max-worker-restart 0
SWIFT_FLAGS = -Xcc -I$(PYTHON_INCLUDE) --explicit-target-dependency-import-check error

SOURCES := $(shell find Sources -type f) Package.swift engine.exports setup.py pyproject.toml \
	$(shell find python/django_grpc python/django_grpc_testtools -name '*.py*' -not -name '*.pyc')

.PHONY: help demo serve test test-slow check swift-test python-test slow-test compat-test wheel bench bench-async bench-health bench-observability bench-querysets bench-workers soak waves chaos fuzz sanitize format clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

## The first two commands of a new machine

demo: $(VENV)/.installed ## Build, install, load real data, serve it and take a tour with a real client
	$(BIN)/python examples/atlas/demo.py

serve: $(VENV)/.installed ## As demo, but leave the server running
	$(BIN)/python examples/atlas/demo.py --serve

test: check swift-test python-test ## Format, lint, types, Swift and Python tests, in minutes

test-slow: slow-test compat-test ## What takes longer: proxies, reloads and kills under load; the oldest Django

## The parts

wheel: $(WHEELHOUSE)/.built ## Make the wheel, one self-contained binary for CPython 3.11 and newer

$(WHEELHOUSE)/.built: $(SOURCES) | $(VENV)/.created
	rm -rf $(WHEELHOUSE) build
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir $(WHEELHOUSE) .
	touch $@

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	touch $@

$(VENV)/.installed: $(WHEELHOUSE)/.built examples/atlas/requirements.txt
	$(BIN)/pip install --quiet --group dev -r examples/atlas/requirements.txt $(WHEELHOUSE)/*.whl
# A wheel that was made anew has the version of the one before, which pip would keep.
	$(BIN)/pip install --quiet --force-reinstall --no-deps $(WHEELHOUSE)/*.whl
	touch $@

check: $(VENV)/.installed ## Format, lint and types
	swift format lint --strict --recursive Sources Tests Package.swift
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=python/tests $(BIN)/mypy
	PYTHONPATH=python/tests $(BIN)/python -m mypy.stubtest django_grpc._engine

format: $(VENV)/.installed ## Format Swift and Python
	swift format --in-place --recursive Sources Tests Package.swift
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

swift-test: ## Swift tests: wire, transport, server
	swift test $(SWIFT_FLAGS)

python-test: $(VENV)/.installed ## Python tests, against the installed wheel
	$(BIN)/python -m pytest $(IN_PARALLEL) -m 'not slow'

slow-test: $(VENV)/.installed
	$(BIN)/python -m pytest $(IN_PARALLEL) -m slow

# The oldest Django that is supported, in an environment of its own: what touches Django, and not
# what processes, sockets and the engine do below it.
WITHOUT_DJANGO = engine engine_aio deployment processes observability test_ending.py test_lost_output.py \
	test_certificates.py test_wheel.py test_shutdown.py test_logs.py
compat-test: $(WHEELHOUSE)/.built
	$(PYTHON) -m venv $(VENV)-django42
	$(VENV)-django42/bin/pip install --quiet --upgrade pip
	$(VENV)-django42/bin/pip install --quiet --group dev -r examples/atlas/requirements.txt \
		$(WHEELHOUSE)/*.whl 'django>=4.2,<4.3'
	$(VENV)-django42/bin/pip install --quiet --force-reinstall --no-deps $(WHEELHOUSE)/*.whl
	$(VENV)-django42/bin/python -m pytest $(IN_PARALLEL) \
		$(WITHOUT_DJANGO:%=--ignore python/tests/%)

bench: wheel ## Measure ours and django-grpc on grpcio side by side
	$(PYTHON) benchmarks/run.py

bench-async: $(VENV)/.installed ## Measure async methods against grpc.aio
	$(BIN)/python benchmarks/run_async.py

bench-health: $(VENV)/.installed ## Measure probes while everything is busy
	$(BIN)/python benchmarks/health.py

bench-observability: wheel ## Measure what metrics, watchdog and access log cost
	$(PYTHON) benchmarks/observability.py

bench-querysets: wheel ## Measure serialize_queryset against django-grpc's way
	$(PYTHON) benchmarks/querysets.py

bench-workers: wheel ## Measure worker processes: the spread of connections, and two against one
	$(PYTHON) benchmarks/workers.py

soak: wheel ## A million calls: references and memory stay flat
	$(PYTHON) benchmarks/soak.py

chaos: $(VENV)/.installed ## Kill, stop, hang and reload worker processes under load, ten rounds
	DJANGO_GRPC_CHAOS=10 $(BIN)/python -m pytest -o faulthandler_timeout=0 python/tests/processes/test_chaos.py

waves: wheel ## Waves of all kinds of calls: a server is whole after any load
	$(PYTHON) benchmarks/waves.py

fuzz: ## Fuzz the wire layer and the transport, two minutes each
	dev/fuzz.sh

sanitize: $(VENV)/.installed ## Swift and Python tests under the sanitizers
	dev/sanitize.sh

clean: ## Remove what was built, but for SwiftPM's folders
	rm -rf $(WHEELHOUSE) build $(VENV) $(VENV)-django42
