# Everything runs in .venv, which is made when it is missing and renewed when pyproject.toml or the lock is newer. The lock
# pins versions with which the tests passed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LOCK := requirements.lock
NEWEST := .venv-newest
WEB := .cache/onnxruntime-web
export HF_HUB_OFFLINE ?= 1

.PHONY: demo ask app scenes-model claim test test-newest lock test-slow test-eval test-app test-upstream fuzz mutants notebooks style check

demo: $(INSTALLED)
	$(BIN)/python recipes/demo.py $(ARGS)

ask: $(INSTALLED)
	$(BIN)/python recipes/ask.py --image "$(IMAGE)" --question "$(Q)" $(ARGS)

# A picture, a question, and where the words look, in a browser. Brings Gradio.
app: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[app]"
	$(BIN)/python recipes/app.py $(ARGS)

# The checkpoint that `make ask` uses, and its twin without guidance: about two hours on two CPU cores.
scenes-model: $(INSTALLED)
	$(BIN)/python recipes/scenes_model.py $(ARGS)

# Does guidance help? Hours; goes on where it was stopped.
claim: $(INSTALLED)
	$(BIN)/python recipes/claim.py $(ARGS)

# Two workers of one thread each (OMP_NUM_THREADS=2 gives each two), which get the files whole and in the order of conftest.py.
test: $(INSTALLED) $(WEB)/node_modules/onnxruntime-web/package.json
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

# The same tests with the newest versions that pyproject.toml allows, in an environment of its own.
test-newest:
	rm -f $(NEWEST)/.installed
	PIP_UPGRADE=1 PIP_UPGRADE_STRATEGY=eager $(MAKE) test VENV=$(NEWEST) LOCK=

# Once the tests pass with the newest versions, these are the lock: with Python 3.11, for newer ones and other systems too.
lock: test-newest
	$(NEWEST)/bin/python -m pip freeze --all --exclude-editable > $(NEWEST)/tested.txt
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(NEWEST)/bin/uv pip compile --quiet pyproject.toml --extra dev --constraint $(NEWEST)/tested.txt --universal \
		--python-version 3.11 --no-annotate --custom-compile-command "make lock" --output-file requirements.lock

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -q -m slow $(ARGS)

# Installs lmms-eval, which brings a hundred packages, and runs the tests that need it. `make test` skips them without it.
test-eval: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[eval]"
	$(BIN)/python -m pytest -q tests/recipes/evaluation $(ARGS)

# Installs Gradio and runs the app's tests, in Chromium where there is one. `make test` skips those that need it.
test-app: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[app]"
	$(BIN)/python -m pytest -q tests/recipes/space $(ARGS)

# transformers' own common test suites, in the installed version. Its source distribution lacks the generation and export
# suites: CHECKOUT=path/to/a/checkout takes them all from there.
test-upstream: $(INSTALLED)
	$(BIN)/python tests/upstream/fetch.py .cache/upstream $(if $(CHECKOUT),--checkout $(CHECKOUT))
	PYTHONPATH=.cache/upstream:tests $(BIN)/python -m pytest -q -o addopts= --disable-warnings tests/upstream $(ARGS)

# Damaged inputs of every kind for SECONDS. SEED gives others, KIND takes one kind, INPUT repeats one that failed.
fuzz: SECONDS := 300
fuzz: $(INSTALLED)
	PYTHONPATH=.:tests $(BIN)/python -m fuzz --seconds $(SECONDS) $(SEED:%=--seed %) $(KIND:%=--kind %) $(INPUT:%=--input %) $(ARGS)

# Runs the notebooks and keeps their outputs.
notebooks: $(INSTALLED)
	$(BIN)/python notebooks/run.py $(ARGS)

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

# What runs models in a browser. Without it, or npm, or a network, its tests are skipped.
$(WEB)/node_modules/onnxruntime-web/package.json:
	npm install --silent --no-audit --no-fund --fetch-retries=0 --fetch-timeout=60000 --prefix $(WEB) onnxruntime-web@1.30.0 \
		|| echo "There is no onnxruntime-web: the tests that need it are skipped."

$(INSTALLED): pyproject.toml $(LOCK)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "AGE-VLM needs Python 3.11 or newer; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]" $(LOCK:%=--constraint %)
	touch $@
