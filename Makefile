# make run    install what is missing and start the studio on the embedded model
# make test   install what is missing, a browser included, and pass the tests (make test ARGS=tests/core: some of them);
#             two files at a time, then alone those that look at how a video keeps time
# make bench  measure, and write the table that the README quotes
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Threads that wait should sleep: two processes that spin on the same cores slow each other tenfold.
export GOMP_SPINCOUNT := 0

.PHONY: run test bench
run: $(VENV)/.run
	$(BIN)/python app.py $(ARGS)

test: $(VENV)/.test
ifeq ($(ARGS),)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not clock"
	$(BIN)/python -m pytest -m clock
else
	$(BIN)/python -m pytest $(ARGS)
endif

bench: $(VENV)/.run
	$(BIN)/python tests/bench.py $(ARGS)

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed. Install Python 3.11, or name another with: make PYTHON=python3.12 run" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.test: tests/requirements.txt $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps ccvfi==0.0.3 tenacity==9.2.1  # RIFE; it would bring a second OpenCV
	@bash tests/browser/install.sh $(BIN)/python
	@touch $@
