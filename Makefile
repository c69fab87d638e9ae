# Two commands: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: quickstart test lint install clean

quickstart: $(READY)
	$(BIN)/pipeline sample-data data/sample
	$(BIN)/pipeline run jobs/quickstart.yaml
	$(BIN)/pipeline preview out/quickstart
	@echo
	@echo "Look at:  out/quickstart/preview.png      originals beside their decoded tokens"
	@echo "          out/quickstart/manifest.json    what the data set is"
	@echo "          out/quickstart/report.json      the figures above"
	@echo "Next:     $(BIN)/pipeline verify out/quickstart"
	@echo "          $(BIN)/python examples/train_pytorch.py out/quickstart"

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) out data
