# Each target works alone on a machine with python3 (>= 3.11) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A CUDA machine names its own build, for example TORCH="torch --index-url URL-of-the-CUDA-wheels".
TORCH ?= torch==2.13.0
STAMP := $(VENV)/.installed
TEST_JOBS ?= 2
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: install test coverage test-slow check audit docs pictures format demo bench cpu-products bench-scale chaos streams killed-worker cpu-kernels gpu-check reproduce clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

# Files share two workers: most tests wait for a process of theirs to start.
test: $(STAMP)
	$(BIN)/pytest -n $(TEST_JOBS) --dist loadfile

# The same tests, and which lines they reach: simulation takes 1.7 times as long under the tracer.
coverage: $(STAMP)
	$(BIN)/pytest -n $(TEST_JOBS) --dist loadfile --cov --cov-report=
	$(BIN)/python -m tests.coverage_table

test-slow: $(STAMP)
	$(BIN)/pytest -m slow --timeout=1200

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/vulture
	$(BIN)/vulture engine policies tuner store api migrations gearshift benchmarks tests
	$(BIN)/python -m tests.rooms
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml engine policies tuner store api migrations gearshift
	$(BIN)/pytest tests/test_imports.py

# Dependencies with known holes, as far as the registry tells.
audit: $(STAMP)
	$(BIN)/python -m tests.audit

# The documents as a site in site/; ends on any warning.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The pictures of the explanations, anew: simulations and dated reports, about a minute.
pictures: $(STAMP)
	$(BIN)/python -m docs.make_pictures

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(STAMP)
	$(BIN)/gearshift demo

bench: $(STAMP)
	$(BIN)/python -m benchmarks.run

# Products of one CPU rank, about two minutes; wants a quiet machine. THREADS=2: of two cores.
THREADS ?= 1
cpu-products: $(STAMP)
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m benchmarks.cpu_products --threads $(THREADS) \
		--out benchmarks/reports/$$(date +%F)-cpu-products.md

# About two minutes each; MINUTES=30 shows whether memory grows.
MINUTES ?= 1
bench-scale: $(STAMP)
	$(BIN)/python -m benchmarks.control_plane_scale --database sqlite --minutes $(MINUTES)
	$(BIN)/python -m benchmarks.control_plane_scale --database postgresql --minutes $(MINUTES)

# For example CHAOS="--database postgresql --injections 40 --seed 7".
CHAOS ?=

chaos: $(STAMP)
	$(BIN)/python -m benchmarks.chaos $(CHAOS)

# 1,000 streams at once on a paced engine: first tokens against its own model, and its memory.
STREAMS_MINUTES ?= 2
streams: $(STAMP)
	$(BIN)/python -m benchmarks.streams --minutes $(STREAMS_MINUTES) \
		--out benchmarks/reports/$$(date +%F)-streams.md

# A tuning job whose worker is killed twice, against the same job left alone; KILLED="--live --pairs 1".
KILLED ?=

killed-worker: $(STAMP)
	$(BIN)/python -m benchmarks.killed_worker $(KILLED) \
		--out benchmarks/reports/$$(date +%F)-killed-worker.md

# Compiled operations of a layer against torch's; on a busy machine CPU_KERNELS="--clock cpu --threads 1".
CPU_KERNELS ?=

cpu-kernels: $(STAMP)
	$(BIN)/python -m benchmarks.cpu_kernels $(CPU_KERNELS) \
		--out benchmarks/reports/$$(date +%F)-cpu-kernels.md

# The CUDA path on a machine with a GPU, in whatever python has torch there: within 9 minutes, no network.
gpu-check:
	$(PYTHON) -m benchmarks.gpu_check --out benchmarks/reports/$$(date +%F)-gpu-check.md

reproduce: $(STAMP)
	$(BIN)/python -m benchmarks.reproduce

clean:
	rm -rf $(VENV) build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
