# Every target sets up what it needs: a virtual environment, pinned packages, this package in editable form.
PYTHON ?= python3.11
# options for pip, such as the --index-url of an index with CPU builds of torch: PyPI's own brings CUDA on Linux
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all test-oldest test-newest lint format docs wheel setup clean

demo: $(STAMP)
	$(BIN)/tara demo --out demo

# two workers with a thread each: more only get in one another's way
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal
test: lint
	$(PYTEST)

# also what takes minutes: the studies' own tests, the proof at full size
test-all: lint
	$(PYTEST) -m "not gpu"

# the documentation as a site in build/site; a warning is an error
docs: $(STAMP)
	$(BIN)/mkdocs build --strict --quiet

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

# the wheel, in a bare environment as `conda env create` makes one: what environment.yml gives to pip, the commands, and
# an image of the embedded base, which needs no download
BARE := build/bare/bin
wheel: $(STAMP)
	rm -rf build/bare dist
	$(PYTHON) -m venv build/bare || python3 -m venv build/bare
	$(BARE)/pip install $(PIP_FLAGS) --quiet --constraint constraints.txt torch==2.13.0 pyyaml
	$(BARE)/python -c "import yaml; print(*yaml.safe_load(open('environment.yml'))['dependencies'][-1]['pip'])" \
		| xargs $(BARE)/pip install $(PIP_FLAGS) --quiet --constraint constraints.txt
	cd build && bare/bin/tara --help && bare/bin/train_dreambooth_tara_sdxl.py --help > bare/help.txt
	cd build && bare/bin/tara generate "a cat in the snow" --steps 2 --seeds 0 --device cpu --out bare/image \
		--base "$$(bare/bin/python -c 'import toyland; print(toyland.BASE)')"

setup: $(STAMP)

# torch comes first, and pinned: a later, looser requirement then finds it and takes nothing bigger
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install $(PIP_FLAGS) --quiet --constraint constraints.txt --editable '.[tensorboard,dev]'
	touch $@

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest demo build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
