# Type `make` for what there is. PYTHON=python3.12 takes another Python.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GATE := build/gate
MODEL := runs/quickstart/model

.DEFAULT_GOAL := help
.PHONY: help quickstart test soak lint type pins format bench-train bench-decode bench-input wheel gate clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(VENV)/quickstart ## install, train a small translator in minutes, translate with it, score it
	$(BIN)/seq2seq-train +recipe=quickstart
	@echo
	@printf '%s\n' 'forty-seven' 'We need twelve kilograms of flour tomorrow.' 'half past three' \
	  'The concert takes place on Friday, May 9, 2031.' >$(VENV)/samples
	$(BIN)/seq2seq-translate --model $(MODEL) <$(VENV)/samples
	@echo
	$(BIN)/seq2seq-evaluate --model $(MODEL)

# Two at a time, since many only wait. Threads that wait for others must not keep a core busy meanwhile.
test: $(VENV)/dev ## run the tests
	GOMP_SPINCOUNT=0 $(BIN)/python -m pytest -n 2 --dist worksteal

soak: $(VENV)/dev ## kill, stop and watch trainings, and translate any bytes, for half an hour; the figures of docs/reliability.md
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak.kills --output docs/reliability/kills.json
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak.stops --output docs/reliability/stops.json
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak.memory --output docs/reliability/memory.json
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak.translate_memory --lines 100000 --beam-size 1 \
	  --output docs/reliability/translating.json
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --hypothesis-profile=soak tests/translate/test_contract.py \
	  tests/translate/test_lines.py -k 'test_text or test_jsonl or test_n_best or joined or any_bytes'
	$(BIN)/python -m tools.reliability

lint: $(VENV)/dev ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(VENV)/dev ## check types
	$(BIN)/mypy

# By a pip of its own: before 25.3 a dry run downloads everything. This machine's other indexes do not count.
pins: ## check that PyPI has the versions of constraints.txt, and that they fit together
	@$(PYTHON) -c 'import urllib.request as u; u.urlopen("https://pypi.org/simple/pip/", timeout=20)' 2>/dev/null || \
	  { echo 'no network: pins are not checked' >&2; exit 0; }; \
	$(PYTHON) -m venv build/pins && build/pins/bin/pip install --quiet 'pip>=25.3' && \
	env -u PIP_FIND_LINKS -u PIP_EXTRA_INDEX_URL -u PIP_CONSTRAINT -u PIP_NO_INDEX -u PIP_PRE PIP_CONFIG_FILE=/dev/null \
	  build/pins/bin/pip install --dry-run --ignore-installed --quiet --index-url https://pypi.org/simple \
	  -c constraints.txt './[dev,bench]'

format: $(VENV)/dev ## put the code into the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-train: $(VENV)/bench ## measure training beside peers (nn.Transformer, Hugging Face Marian)
	GOMP_SPINCOUNT=2000 $(BIN)/python tools/bench_train.py

bench-decode: $(VENV)/bench ## measure translation beside CTranslate2: MODEL=dir SOURCE=file REFERENCE=file
	GOMP_SPINCOUNT=10000 $(BIN)/python -m tools.bench_decode $(MODEL) $(SOURCE) $(REFERENCE)

bench-input: $(VENV)/dev ## measure the way of data from disk into batches
	$(BIN)/python -m tools.bench_input

wheel: $(VENV)/dev ## build dist/seq2seq-*.whl
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation

gate: wheel ## install the wheel alone, train quickstart with it from another folder, fail under the bar
	rm -rf $(GATE)
	$(PYTHON) -m venv $(GATE)/venv
	$(GATE)/venv/bin/pip install --quiet -c constraints.txt "./$$(ls dist/*.whl)[quickstart]"
	cd $(GATE) && venv/bin/seq2seq-train +recipe=wmt14_en_de --cfg job >wmt14_en_de.yaml
	cd $(GATE) && venv/bin/seq2seq-train +recipe=quickstart
	cd $(GATE) && echo 'forty-seven' | venv/bin/seq2seq-translate
	cd $(GATE) && venv/bin/seq2seq-evaluate --min-bleu 95 --min-exact 95 --min-exact-each 90

clean: ## remove what was built; runs/ stays
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' || \
	  { echo "$$($(PYTHON) --version) found; Python 3.11 to 3.14 is needed: make PYTHON=python3.12 …" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/quickstart: $(VENV)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt -e './[quickstart]'
	@touch $@

$(VENV)/dev: $(VENV)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt -e './[dev]'
	@touch $@ $(VENV)/quickstart

$(VENV)/bench: $(VENV)/dev
	$(BIN)/pip install --quiet -c constraints.txt -e './[dev,bench]'
	@touch $@
