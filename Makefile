# make demo   simulate a radial scan (36 spokes), reconstruct it through the gadget, leave images in demo/
# make test   ruff, mypy and the test suite
# make test-oldest   what speaks MRD, with the oldest numpy and ismrmrd that setup.cfg allows, in .venv-oldest
# Both work in .venv, made on first use; the Python it is made from is left alone.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
REQUIREMENTS := setup.cfg constraints.txt pyproject.toml
DEMO_PRESET ?= fast

.PHONY: demo test test-oldest clean

demo: $(VENV)/.installed
	mkdir -p demo
	$(BIN)/pogmdm phantom demo/scan.h5 --trajectory radial --shots 36 --matrix 192 --coils 8 --truth --overwrite
	$(BIN)/pogmdm run demo/scan.h5 -o demo/recon.h5 --preset $(DEMO_PRESET) --png demo --html demo/report.html --overwrite
	@echo
	@echo "all on one page:      $(CURDIR)/demo/report.html"
	@echo "image:                $(CURDIR)/demo/image_1.png"
	@echo "standard deviation:   $(CURDIR)/demo/image_10.png"
	@echo "both, as ISMRMRD:     $(CURDIR)/demo/recon.h5"
	@echo "the simulated scan:   $(CURDIR)/demo/scan.h5 (group truth: root sum of squares of its channels before whitening)"

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto --dist loadfile

$(VENV)/.installed: $(REQUIREMENTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

test-oldest:
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	grep -v -e numpy -e ismrmrd constraints.txt > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-oldest/constraints.txt \
		-e '.[test]' 'numpy==1.26.*' 'ismrmrd==1.14.*'
	.venv-oldest/bin/python -m pytest tests/gadget tests/e2e

clean:
	rm -rf $(VENV) .venv-oldest demo build dist *.egg-info
