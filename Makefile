# Every target sets up what it needs; python3.11 with venv and pip, and make, are all that must be there.

VENV ?= .venv
PYTHON ?= python3.11
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

PROTOS := $(patsubst protos/%,%,$(shell find protos/nst -name '*.proto'))
SERVICES := $(filter %_service.proto,$(PROTOS))

# Writes the stubs into a folder: $(call generate,folder). Only services need gRPC code.
generate = $(BIN)/python -m grpc_tools.protoc -Iprotos \
	--plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --python_out=$(1) --mypy_out=quiet:$(1) $(PROTOS) && \
	$(BIN)/python -m grpc_tools.protoc -Iprotos \
	--plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc --grpc_python_out=$(1) --mypy_grpc_out=quiet:$(1) $(SERVICES)

.PHONY: help install demo test check lint types contract layers protos bench load fuzz chaos soak scale drain idle clean

help:
	@echo "make demo     stylise a picture on a server of its own; pictures and plots go to demo/"
	@echo "make test     run the tests"
	@echo "make check    run the linters, the type checker and the contract checks"
	@echo "make bench    run the benchmarks"
	@echo "make load     measure the gateway with many watchers and a full queue"
	@echo "make fuzz     send the gateway what nobody should, for MINUTES (5)"
	@echo "make chaos    kill, freeze and cut everything under load, and see what is lost"
	@echo "make drain    restart everything under load, and see who notices"
	@echo "make soak     run small jobs for 30 minutes, and see what grows"
	@echo "make idle     let jobs wait for 10 minutes, and see who is forgotten"
	@echo "make scale    two model servers against one, and jobs together against one by one"
	@echo "make protos   regenerate the stubs after a change to a .proto file"
	@echo "make clean    remove caches and results; the virtual environment stays"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py

# One compute thread a worker: two workers already fill two cores. In the order of their names the files whose tests
# take long come first, and none of them is left for the end.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: lint types contract layers

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

contract: $(INSTALLED)
	cd protos && $(abspath $(BIN))/buf lint
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && $(call generate,"$$folder") && \
	diff -r --exclude='*.proto' --exclude=__init__.py --exclude=__pycache__ "$$folder/nst" protos/nst || \
	{ echo "The stubs do not match the .proto files: run make protos"; exit 1; }

layers: $(INSTALLED)
	$(BIN)/python -m pytest -q tests/unit/test_layering.py

protos: $(INSTALLED)
	find protos/nst -name '*_pb2*.py*' -delete
	$(call generate,protos)

bench: $(INSTALLED)
	$(BIN)/python bench/run.py

LOAD = PYTHONPATH=tests:tests/integration/gateway:bench OMP_NUM_THREADS=1 $(BIN)/python tests/load

load: $(INSTALLED)
	$(LOAD)/watchers.py
	$(LOAD)/full_queue.py

fuzz: $(INSTALLED)
	$(LOAD)/fuzz.py --minutes $(or $(MINUTES),5)

chaos: $(INSTALLED)
	for seed in 1 2 3 4; do $(BIN)/python tests/load/chaos.py --seed $$seed || exit 1; done

drain soak scale idle: $(INSTALLED)
	$(BIN)/python tests/load/$@.py

clean:
	rm -rf demo dist bench/results .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
