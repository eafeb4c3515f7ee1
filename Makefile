# Each target does its own set-up; a second call starts at once.
VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: demo test check-style

demo: $(READY)  ## A tiny Llama, LoRA, on this CPU: two ranks, real text; then with tolls on its operators
	$(PYTHON) -m cctrain recipe=tiny_llama_peft
	$(PYTHON) -m cctrain recipe=tiny_llama_peft cc=emulated tolls=b300

test: $(READY)  ## Unit tests, then the real AutoModel recipes, tiny, on CPU
	$(PYTHON) -m pytest

check-style: $(READY)  ## ruff, mypy, import-linter
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# torch goes first: any other package that asks for it may choose a build of its own.
$(READY): pyproject.toml constraints.txt
	python3 -c 'import sys; sys.exit("cctrain needs Python 3.11 or later" if sys.version_info < (3, 11) else 0)'
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --upgrade pip
	$(PYTHON) -m pip install --quiet --constraint constraints.txt torch
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
