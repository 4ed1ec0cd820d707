# Two commands are all a newcomer needs: make demo, make test.
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The first Python on the PATH that is new enough; `make PYTHON=…` names another.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,\
	$(shell $(name) -c '$(NEW_ENOUGH)' 2>/dev/null && echo $(name))))

.PHONY: install demo test lint mutations docs clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, none is on the PATH: make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c '$(NEW_ENOUGH)' || { echo "$(PYTHON) is older than Python 3.11: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[workbench,cluster,test]'
	@touch $@

demo: install
	@$(BIN)/replay demo demo

test: install
	$(BIN)/python -m pytest -n 2 --dist loadgroup

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Breaks one rule at a time in a scratch copy: the gate or the tests must notice each. Takes minutes.
mutations: install
	@$(BIN)/python scripts/mutations.py

# The command line's reference, from the commands themselves; a test says when it is out of date.
docs: install
	$(BIN)/python docs/write_cli.py

clean:
	rm -rf $(VENV) build *.egg-info demo .hypothesis .mypy_cache .ruff_cache
