# The two commands of the README are `make report` and `make test`; each makes its own environment first.
# Needs: Python 3.11 or newer, make, git. `make test` uses /usr/bin/chromium for the browser tests and says so when it is absent.
SHELL  := /bin/bash
PYTHON ?= python3
UV     := .uv/bin/uv
BIN    := $(CURDIR)/.venv/bin
SEEDS  ?= 1
FLAGS  ?=

# Every recipe runs in the environment, one computing thread a process: two workers with two threads each are slower.
export PATH := $(BIN):$(PATH)
export OMP_NUM_THREADS ?= 1
export PYTHONWARNINGS ?= default

.PHONY: help env report test test-nb test-py test-slow lab bench pictures export clean distclean

help:      ## this list
	@grep -E '^[a-z-]+: .*##|^[a-z-]+: +##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

env: .venv/ready ## the environment: uv in a venv of its own, then `uv sync` of the locked packages

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vfmkd needs Python 3.11 or newer, found " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check uv

.venv/ready: $(UV) pyproject.toml uv.lock settings.ini
	UV_PYTHON_DOWNLOADS=never $(UV) sync --locked --quiet --python $(PYTHON)
	@touch $@

report: env ## the main job: the edge ablation on embedded data, ending in reports/index.html (SEEDS=3 for a finding)
	vfmkd report edge_ablation --image-size 256 --train-images 64 --val-images 16 --epochs 12 --lr 4e-3 --seeds $(SEEDS) $(FLAGS)
	vfmkd index

test: test-nb test-py ## every notebook's tests, then pytest (what a notebook cannot test)

test-nb: env
	bin/test-notebooks $(FLAGS)

test-py: env
	pytest -m "not slow" -n 2 --dist loadfile $(FLAGS)

test-slow: env ## what `make test` leaves out for its length: cells marked slow, pytest's slow tests
	bin/test-notebooks --flags slow
	pytest $(FLAGS)

lab: env ## JupyterLab on the index notebook, on 127.0.0.1 with a token
	@jupyter labextension disable "@jupyterlab/apputils-extension:announcements" # it would ask an outside host
	jupyter lab --ip 127.0.0.1 $(if $(filter 0,$(shell id -u)),--allow-root) --LabApp.default_url=/lab/tree/nbs/index.ipynb $(FLAGS)

bench: env ## ratios measured side by side; fails when a promised bound is missed
	@set -e; for b in tests/bench/bench_*.py; do echo "== $$b"; python $$b; done

pictures: env ## the README's pictures of the widgets, made by their browser test
	VFMKD_PICTURES=$(CURDIR)/nbs/images pytest tests/test_explorers_lab.py

export: env ## notebooks → package and README; leaves no diff in a clean checkout
	nbdev_export
	nbdev_clean
	bin/readme

clean: ## caches and embedded data that are made again on demand; keeps reports and the environment
	rm -rf data/scenes data/features .pytest_cache .import_linter_cache _proc *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -not -path './.uv/*' -prune -exec rm -rf {} +

distclean: clean ## also the environment
	rm -rf .venv .uv
