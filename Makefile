# Headrace. `make test` is everything a fresh checkout needs; every target can be run alone.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PROTOS := $(shell find protos -name '*.proto')
INSTALLED := $(VENV)/.installed
STUBS  := $(VENV)/.stubs
CLIENTS := .cache/clients
HARNESS := .cache/harness

.PHONY: help venv stubs clients typing lint demo serve test bench clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z]*\):[^#]*## /  make \1\t/p' Makefile | expand -t 16

venv: $(STUBS) ## make .venv with everything installed, Headrace itself editable

# The build requirements come first, so that one pinned set builds and runs. torch comes before the rest: its
# exact version decides which of its many companion packages are needed. On plain PyPI it is the build for CUDA;
# `make venv TORCH_INDEX=URL` takes the one of another index, such as PyTorch's own for processors, far smaller.
$(INSTALLED): pyproject.toml constraints.txt setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt setuptools grpcio-tools googleapis-common-protos
	$(BIN)/python -m pip install -q -c constraints.txt $(addprefix --extra-index-url ,$(TORCH_INDEX)) torch
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[onnx,torch,demo,dev]'
	@touch $@

# An editable install compiles the stubs and the operator, and maps API folders that are new.
$(STUBS): $(INSTALLED) $(PROTOS) $(wildcard runtimes/onnx/native/*)
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

stubs: $(INSTALLED) ## compile the .proto files in place, changed or not
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $(STUBS)

# Clients that need older versions of what the server and its tests use; tests run them as programs of their own.
$(CLIENTS)/.installed: constraints-clients.txt
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install -q -c constraints-clients.txt cohere langchain-huggingface numpy text-generation
	@touch $@

$(HARNESS)/.installed: constraints-harness.txt
	test -x $(HARNESS)/bin/python || $(PYTHON) -m venv $(HARNESS)
	$(HARNESS)/bin/python -m pip install -q -c constraints-harness.txt 'lm-eval[api]'
	@touch $@

clients: $(CLIENTS)/.installed $(HARNESS)/.installed ## make the environments of client libraries that the tests run

typing: ## make build/typing: the import names as folders, for type checkers and editors
	@rm -rf build/typing && mkdir -p build/typing/headrace
	@ln -s $(foreach name,server runtimes envoy,$(CURDIR)/$(name)) \
	  $(addprefix $(CURDIR)/,$(wildcard protos/headrace/*)) build/typing/headrace/

lint: venv typing ## check style, types and the protos
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy build/typing/headrace setup.py $(wildcard tests benchmarks examples)
	$(BIN)/python setup.py -q build_protos --descriptor-set build/headrace.binpb
	$(BIN)/buf lint build/headrace.binpb --config buf.yaml

demo: venv ## build the demo model repository; does nothing when it is there
	$(BIN)/headrace pull demo

serve: venv demo ## serve the demo models: REST on 127.0.0.1:8000, gRPC on 127.0.0.1:8001
	$(BIN)/headrace serve

test: venv demo clients ## run all tests: the quick ones first, then the slow ones
	$(BIN)/pytest -m "not slow"
	$(BIN)/pytest -m slow || [ $$? -eq 5 ] # 5: nothing is marked slow

bench: venv demo ## run the benchmarks
	$(BIN)/python -m benchmarks

clean: ## remove what was made, the environment too; .cache stays: models, packages, clients
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find protos \( -name '*_pb2*.py*' -o -name py.typed \) -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
