# make demo: set up, run the first sweep, report. make test: set up, run the whole test suite.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint types check docker-lint docs lock clean

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c "import sys; sys.exit('saebench needs Python 3.11 or newer') if sys.version_info < (3, 11) else None"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

demo: $(READY)
	$(BIN)/saebench sweep sweeps/quickstart.yaml
	$(BIN)/saebench report quickstart
	@echo
	@echo "Open the MLflow UI with: $(BIN)/saebench ui quickstart"

test: $(READY)
	$(BIN)/python -m pytest -n logical --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

docker-lint: $(READY)
	$(BIN)/hadolint docker/Dockerfile

# The site, in build/site; warnings are errors (mkdocs.yml).
docs: $(READY)
	$(BIN)/mkdocs build --quiet

check: lint types docker-lint docs test

# Resolve pyproject.toml anew in an empty environment and write the pins down.
lock:
	rm -rf build/lock-venv
	$(PYTHON) -m venv build/lock-venv
	build/lock-venv/bin/python -m pip install --quiet torch==2.13.0
	build/lock-venv/bin/python -m pip install --quiet -e ".[dev]"
	( echo '# Pinned set-up of `make demo` and `make test`; the package itself asks for ranges (pyproject.toml). Made by `make lock`.'; \
	  build/lock-venv/bin/python -m pip freeze --exclude-editable | sed 's/+cpu//' ) > requirements.lock

clean:
	rm -rf $(VENV) build .mypy_cache .pytest_cache .ruff_cache
