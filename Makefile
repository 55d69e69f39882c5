# make demo and make test do everything on a fresh machine, given python3 and a package registry.
PYTHON ?= python3
BIN := .venv/bin
# The last step of an installation writes this line to .venv/whole: same folder, same requirements.
STATE := $(CURDIR) $(shell cat setup.cfg constraints.txt | cksum)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# The tests start many processes, and each would compile every module again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test slow gpu lint docs faults lock oldest newest audit sbom wheel install install-test install-dev install-docs clean

help:  ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: install  ## caption photographs with the shipped model, then train and score a small model
	$(BIN)/captioner predict data/photos
	$(BIN)/captioner shapes --output data/shapes
	rm -rf runs/shapes
	$(BIN)/python train.py --config shapes
	$(BIN)/captioner evaluate --checkpoint runs/shapes/captioner.safetensors \
	    --annotations data/shapes/captions_val.json --images data/shapes/val

test: install-test  ## the tests; slow ones by make slow
	$(BIN)/python -m pytest

slow: install-test  ## the slow tests: whole trainings, killed and resumed ones, every command of the README
	$(BIN)/python -m pytest -m "slow or hypothesis" -n 0 --hypothesis-profile many

gpu: install-test  ## the tests that need a CUDA device
	$(BIN)/python -m pytest tests/gpu -n 0 --durations 10

lint: install-dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install-docs  ## the documentation as a site, in site/
	$(BIN)/mkdocs build --strict

faults: install-test  ## kill processes 200 times at random moments, and feed every reader with hostile bytes
	$(BIN)/python tests/faults/kills.py --kills 200 --folder $$(mktemp -d)/kills
	for reader in images annotations checkpoints shards requests; do \
	    $(BIN)/python tests/faults/fuzz.py $$reader --seconds 120 || exit 1; done

TOOL = $(PYTHON) -m venv --clear .venv/tools && .venv/tools/bin/pip install --quiet --disable-pip-version-check
RESOLVE = .venv/tools/bin/uv pip compile setup.cfg --python .venv/tools/bin/python --no-header --no-annotate --quiet
# Installs the requirements in a file into a separate venv and runs the tests in it.
TRY = $(PYTHON) -m venv --clear .venv/$@ && \
    .venv/$@/bin/pip install --quiet --disable-pip-version-check -r .venv/$@.txt && .venv/$@/bin/python -m pytest

lock:  ## resolve constraints.txt again, for all extras together: the newest versions, except torch, which stays pinned
	$(TOOL) uv
	grep -E '^(#|torch==|torchvision==|pytorch-lightning==)' constraints.txt > .venv/pins.txt
	$(RESOLVE) --extra all --universal --python-version 3.10 \
	    --constraint .venv/pins.txt --output-file .venv/lock.txt
	(grep '^#' .venv/pins.txt; cat .venv/lock.txt) > constraints.txt

oldest:  ## the tests with the oldest versions that setup.cfg allows (except export, which needs a newer torch)
	$(TOOL) uv
	$(RESOLVE) --extra test-oldest --resolution lowest-direct --output-file .venv/$@.txt
	$(TRY)

newest:  ## the tests with the newest versions available
	$(TOOL) uv
	$(RESOLVE) --extra test --upgrade --output-file .venv/$@.txt
	$(TRY)

audit:  ## known vulnerabilities of the versions in constraints.txt
	$(TOOL) pip-audit
	.venv/tools/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

sbom:  ## the list of installed packages as CycloneDX, in dist/captioner.cdx.json
	$(TOOL) cyclonedx-bom
	$(PYTHON) -m venv --clear .venv/plain
	.venv/plain/bin/pip install --quiet --disable-pip-version-check -c constraints.txt .
	mkdir -p dist
	.venv/tools/bin/cyclonedx-py environment .venv/plain/bin/python --output-reproducible \
	    --output-file dist/captioner.cdx.json

wheel:  ## captioner and captioner-weights, the files of checkpoints/, as wheels in dist/
	rm -rf build checkpoints/build dist/*.whl
	$(TOOL) pip
	.venv/tools/bin/pip wheel --quiet --no-deps --wheel-dir dist . ./checkpoints

install:
	@test "$$(cat .venv/whole 2>/dev/null)" = "$(STATE)" || { set -e; \
	    rm -rf .venv; $(PYTHON) -m venv .venv; echo "installing into .venv"; \
	    $(INSTALL) -e .; echo "$(STATE)" > .venv/whole; }

install-test install-dev install-docs: install-%: install
	@test -e .venv/whole-$* || { $(INSTALL) -e '.[$*]' && touch .venv/whole-$*; }

clean:  ## remove generated files: the venv, runs, features, the drawn data
	rm -rf .venv runs features data/shapes data/moving site dist build checkpoints/build
