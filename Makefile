# Every target sets up what it needs: a virtual environment, pinned packages, this package in editable form.
PYTHON ?= python3.11
# options for pip, such as the --index-url of an index with CPU builds of torch: PyPI's own brings CUDA on Linux
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-oldest test-newest lint format environment setup clean

demo: $(STAMP)
	$(BIN)/tara demo --out demo

test: lint
	$(BIN)/pytest

# the suite in an environment of its own with the oldest, or the newest, releases that pyproject.toml admits
test-oldest test-newest: test-%: constraints-%.txt
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$* || python3 -m venv .venv-$*
	.venv-$*/bin/python -m pip install $(PIP_FLAGS) --quiet --constraint $< torch
	.venv-$*/bin/python -m pip install $(PIP_FLAGS) --quiet --constraint $< --editable '.[tensorboard,dev]'
	.venv-$*/bin/pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# what `conda env create` gives to pip: dependencies are looked up, not installed again; the package is built, put into
# a folder and used from there, with all that it ships
CONDA_PIP := $(BIN)/python -c "import yaml; print(*yaml.safe_load(open('environment.yml'))['dependencies'][-1]['pip'])"
PIP := $(BIN)/python -m pip install --quiet
environment: $(STAMP)
	rm -rf build/environment
	$(CONDA_PIP) | xargs $(PIP) --dry-run --constraint constraints.txt
	$(CONDA_PIP) | xargs $(PIP) --no-deps --target build/environment
	PYTHONPATH=build/environment build/environment/bin/train_dreambooth_tara_sdxl.py --help > build/environment/help.txt
	PYTHONPATH=build/environment $(BIN)/python -c "from tara.families import loading, single_file; \
		assert 'build/environment' in loading.__file__; single_file.clip_tokenizer('!'); loading.load_base('toyland', 'cpu')"

setup: $(STAMP)

# torch comes first, and pinned: a later, looser requirement then finds it and takes nothing bigger
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install $(PIP_FLAGS) --quiet --constraint constraints.txt --editable '.[tensorboard,dev]'
	touch $@

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest demo build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
