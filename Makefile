# Every command of the project; continuous integration calls the same ones. `make help` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
STEP := tools/step
export PYTHON
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export PYTHONUNBUFFERED := 1
ifndef BEGIN
BEGIN := $(shell date +%s)
endif
export BEGIN

.PHONY: help env samples demo test browser export-check clean-check nbtest pytest docs readme notebooks bench clean

help:  ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

env: $(STAMP)  ## make .venv and install the package, the tools and the pinned versions

$(STAMP): settings.ini setup.py constraints.txt
	@$(STEP) "Environment" tools/env
	@touch $@

samples: $(STAMP)  ## fetch the small real images that tutorials and tests use
	@$(STEP) "Sample images" python -m mmv_im2im.data_modules.samples

demo: samples  ## train on real nuclei, predict held-out ones, print Dice, write demo.png
	@$(STEP) "Demo" python tools/demo.py

test:  ## every check of continuous integration, in its order
	@$(MAKE) --no-print-directory -j1 samples browser export-check clean-check nbtest docs pytest

browser:  ## install Chromium, in which tests look at the site, where it is missing
	@$(STEP) "Browser" tools/browser

export-check: $(STAMP)  ## notebooks and modules agree
	@$(STEP) "Notebooks and modules agree" python tools/unchanged.py \
		"commit the modules as they are on disk after the export" -- nbdev_export

clean-check: $(STAMP)  ## notebooks carry no stray metadata
	@$(STEP) "Notebooks are clean" python tools/unchanged.py \
		"commit the cleaned notebooks; 'nbdev_install_hooks' cleans them for you" -- nbdev_clean

# one thread for each of two notebooks at a time: more threads than cores are many times slower
nbtest: $(STAMP)  ## run every notebook as a test
	@OMP_NUM_THREADS=1 $(STEP) "Notebooks run" nbdev_test --n_workers 2 --timing

# two processes of one thread each: tests that wait for others keep no core idle;
# nothing is printed after pytest's summary, the last line of `make test`
pytest: $(STAMP)  ## tests of the package, with coverage
	@OMP_NUM_THREADS=1 $(STEP) --last "Tests" pytest tests -n 2 --dist worksteal --cov --cov-report=term --cov-fail-under=80

docs: $(STAMP)  ## build the site into _docs and check its links
	@OMP_NUM_THREADS=1 $(STEP) "Site" python tools/docs.py

readme: $(STAMP)  ## write README.md from nbs/index.ipynb
	@$(STEP) "README.md" python tools/readme.py

notebooks: $(STAMP)  ## execute every notebook in place, so that the saved outputs are true
	@OMP_NUM_THREADS=1 $(STEP) "Notebooks executed" python tools/notebooks.py

bench: $(STAMP)  ## run benchmarks/[a-z]*.py; each prints `figure NAME: VALUE UNIT`
	@for file in benchmarks/[a-z]*.py; do $(STEP) "$$file" python "$$file"; done

clean:  ## remove everything that these commands make, the environment apart
	@rm -rf _proc _docs build dist .pytest_cache .coverage .coverage.* demo demo.png
	@find mmv_im2im tests tools nbs -name __pycache__ -type d -prune -exec rm -rf {} +
