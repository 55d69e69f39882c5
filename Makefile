# make demo and make test do everything on a fresh machine, given python3 and a package registry.
PYTHON ?= python3
BIN := .venv/bin
# A venv is whole when its last step wrote this line: same folder, same requirements.
STATE := $(CURDIR) $(shell cat setup.cfg constraints.txt | cksum)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test slow lint docs install install-test install-dev install-docs clean

help:  ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: install  ## caption photographs with the shipped model, then train and score a small model
	$(BIN)/captioner predict data/photos
	$(BIN)/captioner shapes --out data/shapes
	rm -rf runs/shapes
	$(BIN)/python train.py --config configs/shapes.yaml
	$(BIN)/captioner evaluate --checkpoint runs/shapes/captioner.safetensors \
	    --annotations data/shapes/captions_val.json --images data/shapes/val

test: install-test  ## the tests; slow ones by make slow
	$(BIN)/python -m pytest

slow: install-test  ## the slow tests: whole trainings, killed and resumed ones, every command of the README
	$(BIN)/python -m pytest -m slow -n 0

lint: install-dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install-docs  ## the documentation as a site, in site/
	$(BIN)/mkdocs build --strict

install:
	@test "$$(cat .venv/whole 2>/dev/null)" = "$(STATE)" || { set -e; \
	    rm -rf .venv; $(PYTHON) -m venv .venv; echo "installing into .venv"; \
	    $(INSTALL) -e .; echo "$(STATE)" > .venv/whole; }

install-test install-dev install-docs: install-%: install
	@test -e .venv/whole-$* || { $(INSTALL) -e '.[$*]' && touch .venv/whole-$*; }

clean:  ## remove what is made: the venv, runs, features, the drawn data
	rm -rf .venv runs features data/shapes data/moving site
