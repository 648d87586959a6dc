# make demo | make test are all a user needs; both set the machine up first.
PYTHON := .venv/bin/python
# Namespaces need root, or a user namespace of our own.
ISOLATED := $(PYTHON) -m lab.privileges $(PYTHON)

.PHONY: setup demo bench chaos record check test docs clean

setup:
	@lab/setup.sh

demo: setup
	@$(ISOLATED) -m lab.demo $(ARGS)

bench: setup
	@$(ISOLATED) -m lab.bench $(ARGS)

chaos: setup
	@$(ISOLATED) -m lab.chaos $(ARGS)

record: setup
	@$(ISOLATED) -m lab.flight

check: setup
	@echo "ruff check"; $(PYTHON) -m ruff check --quiet
	@echo "ruff format --check"; $(PYTHON) -m ruff format --check --quiet
	@echo "mypy"; $(PYTHON) -m mypy --no-error-summary

test:
	@lab/setup.sh tests
	@$(MAKE) -s check
	@echo "pytest"; $(ISOLATED) -m pytest --numprocesses 3 $(ARGS)

docs: setup
	@$(PYTHON) -m coloha.config.reference --write
	@$(PYTHON) -m lab.diagram --write
	@$(PYTHON) -m lab.manual --write

clean:
	@rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	@rm -rf .venv "$${COLOHA_CACHE:-.cache}"
