# `make help` lists the targets. Every target creates the environment that it needs.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(VENV)/bin
BUF = npm exec --yes --loglevel=error --package=@bufbuild/buf@1.75.0 -- buf
RELEASED_CONTRACT := protos/released.binpb
PROTOS := $(addprefix pixyproxy/v1/,image_service.proto image_download_service.proto generation_service.proto \
	usage_service.proto)
# googleapis, which a dependency installs.
GOOGLEAPIS = "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
DESCRIPTOR := dist/pixyproxy.v1.binpb
REST_DESCRIPTOR = $(dir $(DESCRIPTOR))pixyproxy.rest.binpb
OPENAPI := docs/openapi.yaml
OPENAPI_GENERATOR := github.com/google/gnostic/cmd/protoc-gen-openapi@v0.7.1
# The first installed Python of at least 3.11; `make PYTHON=… run` selects another one.
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13 python3.14; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.made-%: pyproject.toml
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "PixyProxy needs Python 3.11 or newer." >&2; exit 1; }
	@echo "Creating the environment in $(VENV) (a minute, once) …"
	@# An attempt without Debian's package python3-venv leaves an environment without pip.
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(patsubst run,server,$*)]'
	@touch $@ $(VENV)/.made-run

.PHONY: run
run: $(VENV)/.made-run ## Serve on 127.0.0.1:50051 with SQLite and the folder images/
	@exec $(BIN)/pixyproxy serve

# Five for two cores: tests spend half of their time waiting for other processes.
TEST_WORKERS = $(shell echo $$((5 * $$(getconf _NPROCESSORS_ONLN) / 2)))
# Tests start hundreds of Python processes; where no bytecode is written, each compiles all modules again.
TEST_ENVIRONMENT = PYTHONPATH=tests/support/early PYTHONDONTWRITEBYTECODE=

.PHONY: test
test: $(VENV)/.made-dev ## Run all tests (prints first what it installs, with sizes)
	@$(BIN)/python -m tests.support.installs
	@$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal --ignore tests/cluster --ignore tests/gallery

.PHONY: test-fast
test-fast: $(VENV)/.made-dev ## Run unit tests and SQLite tests (under a minute, installs nothing)
	@$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -n auto --dist worksteal -m 'not servers' \
		tests/unit tests/contract

.PHONY: test-cluster
test-cluster: $(VENV)/.made-dev ## Run replicas behind HAProxy and Envoy, on MySQL and an S3 server (Debian, root)
	@$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -n 2 --dist loadfile tests/cluster

# The page of the gallery is built by the Node of the environment.
GALLERY := deploy/gallery
GALLERY_NPM = PATH="$(abspath $(BIN)):$$PATH" npm --prefix $(GALLERY) --no-audit --no-fund --loglevel=error

$(GALLERY)/node_modules/.made: $(GALLERY)/package.json $(GALLERY)/package-lock.json $(VENV)/.made-dev,gallery
	@echo "Installing what builds the page in $(GALLERY)/node_modules (175 MB, once) …"
	@$(GALLERY_NPM) ci
	@touch $@

$(GALLERY)/build/gallery.js: $(GALLERY)/node_modules/.made $(addprefix protos/,$(PROTOS)) \
		$(wildcard $(addprefix $(GALLERY)/,*.json *.html *.css src/*.ts buf.gen.yaml))
	@$(MAKE) --no-print-directory descriptor DESCRIPTOR=$(GALLERY)/build/pixyproxy.v1.binpb >/dev/null
	@$(GALLERY_NPM) run --silent build

.PHONY: gallery-page
gallery-page: $(GALLERY)/build/gallery.js ## Build the page of the gallery in deploy/gallery/build

.PHONY: gallery
gallery: gallery-page ## Serve a gallery for browsers: PixyProxy, Envoy and the page (prints first what it installs)
	@exec $(BIN)/python -m tests.gallery

.PHONY: test-gallery
test-gallery: $(VENV)/.made-dev,gallery,browser gallery-page ## Test the gallery in Chromium (prints first what it installs)
	@$(BIN)/python -m tests.support.installs gallery
	@$(TEST_ENVIRONMENT) $(BIN)/python -m pytest tests/gallery

.PHONY: faults
faults: $(VENV)/.made-dev ## Inject all faults (some minutes), and write benchmarks/results/faults.md
	@$(TEST_ENVIRONMENT) $(BIN)/python -m tests.faults

.PHONY: fuzz
fuzz: $(VENV)/.made-dev ## Send 100,000 malformed inputs to a server (about ten minutes)
	@$(TEST_ENVIRONMENT) $(BIN)/python -m tests.fuzz --inputs 100000

# ONLY=page_tokens, or several names, leaves out the other modules; FRESH=1 runs also what is known to be
# killed.
.PHONY: mutants
mutants: $(VENV)/.made-dev,mutants ## Change the code bit by bit, and see that tests notice (an hour the first time)
	@$(TEST_ENVIRONMENT) $(BIN)/python -m tests.mutants $(if $(FRESH),--fresh) --only $(ONLY)

.PHONY: bench-million
bench-million: $(VENV)/.made-dev ## Measure search among a million images (an hour the first time), and write benchmarks/results/million.md
	@$(TEST_ENVIRONMENT) $(BIN)/python -m benchmarks.million --write

.PHONY: bench
bench: $(VENV)/.made-dev,bench ## Measure speed beside baselines and peers (needs Go), and write benchmarks/results/bench.md
	@$(TEST_ENVIRONMENT) $(BIN)/python -m benchmarks

.PHONY: lint
lint: $(VENV)/.made-dev ## Check format, style and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@for platform in win32 darwin; do $(BIN)/mypy --platform $$platform --cache-dir .mypy_cache/$$platform \
		--follow-imports silent pixyproxy/client pixyproxy/cli; done

.PHONY: lint-proto
lint-proto: ## Check the API contract, also against the last release (needs npm)
	@$(BUF) lint
	@$(BUF) format protos --diff --exit-code
	@$(BUF) breaking --against $(RELEASED_CONTRACT)

.PHONY: release-contract
release-contract: ## At a release: record this contract for later comparison (needs npm)
	@$(BUF) build --exclude-source-info --output $(RELEASED_CONTRACT)

.PHONY: format
format: $(VENV)/.made-dev ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

.PHONY: generate
generate: $(VENV)/.made-dev ## Regenerate generated/ from protos/
	@rm -rf generated/pixyproxy_pb
	@# The package is pixyproxy_pb, beside pixyproxy itself, so the protos must import one another by that name here.
	@protos=$$(mktemp -d) && trap 'rm -rf "$$protos"' EXIT && cp -r protos/pixyproxy "$$protos/pixyproxy_pb" && \
		sed -i.original 's#import "pixyproxy/#import "pixyproxy_pb/#' "$$protos"/pixyproxy_pb/v1/*.proto && \
		$(BIN)/python -m grpc_tools.protoc -I"$$protos" -I$(GOOGLEAPIS) --python_out=generated --pyi_out=generated \
			--grpc_python_out=generated $(PROTOS:pixyproxy/%=pixyproxy_pb/%)

.PHONY: descriptor
descriptor: $(VENV)/.made-dev ## Write dist/pixyproxy.v1.binpb (the contract and google.rpc's errors) and pixyproxy.rest.binpb (with HTTP rules)
	@mkdir -p $(dir $(DESCRIPTOR))
	@$(BIN)/python -m grpc_tools.protoc -Iprotos -I$(GOOGLEAPIS) \
		--include_imports --include_source_info --descriptor_set_out=$(DESCRIPTOR) \
		$(PROTOS) google/rpc/error_details.proto google/rpc/status.proto
	@$(BIN)/python deploy/envoy/rest_descriptor.py $(DESCRIPTOR) $(REST_DESCRIPTOR)
	@echo $(DESCRIPTOR) $(REST_DESCRIPTOR)

.PHONY: openapi
openapi: descriptor ## Write docs/openapi.yaml, which describes the REST API (needs Go)
	@made=$$(mktemp -d) && trap 'rm -rf "$$made"' EXIT && GOBIN="$$made" go install $(OPENAPI_GENERATOR) && \
		$(BIN)/python -m grpc_tools.protoc --descriptor_set_in=$(REST_DESCRIPTOR) \
			--plugin="$$made/protoc-gen-openapi" --openapi_out="$$made" \
			--openapi_opt=enum_type=string,Mpixyproxy/v1/image_service.proto=pixyproxy.v1/v1 \
			--openapi_opt=Mpixyproxy/v1/image_download_service.proto=pixyproxy.v1/v1 \
			$(addprefix pixyproxy/v1/,image_service.proto image_download_service.proto) && \
		$(BIN)/python deploy/envoy/openapi.py "$$made/openapi.yaml" $(OPENAPI)

.PHONY: lint-openapi
lint-openapi: ## Check docs/openapi.yaml (needs npm)
	@npm exec --yes --loglevel=error --package=@redocly/cli@2.77.0 -- redocly lint \
		--skip-rule=info-license --skip-rule=operation-4xx-response $(OPENAPI)

.PHONY: clean
clean: ## Remove the environment and all caches, but not images and databases
	@rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache mutants
