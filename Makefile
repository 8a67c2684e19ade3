# Everything runs in .venv, which is made when it is missing or older than pyproject.toml.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export HF_HUB_OFFLINE ?= 1
# torchao (0.18) sets off a deprecation notice in torch (2.15) wherever peft is imported.
export TORCH_LOGS ?= -torch.utils._pytree

.PHONY: demo ask scenes-model claim test test-slow test-eval test-upstream mutants style check

demo: $(INSTALLED)
	$(BIN)/python recipes/demo.py $(ARGS)

ask: $(INSTALLED)
	$(BIN)/python recipes/ask.py --image "$(IMAGE)" --question "$(Q)" $(ARGS)

# The checkpoint that `make ask` uses: about an hour on two CPU cores.
scenes-model: $(INSTALLED)
	$(BIN)/python recipes/scenes_model.py $(ARGS)

# Does guidance help? Hours; goes on where it was stopped.
claim: $(INSTALLED)
	$(BIN)/python recipes/claim.py $(ARGS)

# Two workers of one thread each (OMP_NUM_THREADS=2 gives each two), which get the files whole and in the order of conftest.py.
test: $(INSTALLED)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -q -m slow $(ARGS)

# Installs lmms-eval, which brings a hundred packages, and runs the tests that need it. `make test` skips them without it.
test-eval: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[eval]"
	$(BIN)/python -m pytest -q tests/recipes/evaluation $(ARGS)

# transformers' own common test suites, in the installed version. Its source distribution lacks the generation and export
# suites: CHECKOUT=path/to/a/checkout takes them all from there.
test-upstream: $(INSTALLED)
	$(BIN)/python tests/upstream/fetch.py .cache/upstream $(if $(CHECKOUT),--checkout $(CHECKOUT))
	PYTHONPATH=.cache/upstream:tests $(BIN)/python -m pytest -q -o addopts= --disable-warnings tests/upstream $(ARGS)

# Plants one bug at a time and shows that the tests turn red.
mutants: $(INSTALLED)
	$(BIN)/python tests/mutants.py $(ARGS)

style: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mlinter modeling_agevlm

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "AGE-VLM needs Python 3.11 or newer; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@
