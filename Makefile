# make train          draws the toy data set and trains on it: ten to thirty minutes on two CPU cores
# make page           after that: opens a page on which joints are dragged, and the newest network's picture follows
# make toy-gif        after that: somebody of the toy's test split in motion, as docs/toy.gif
# make test           runs the tests
# make test-fast      runs the quick ones, in a few minutes
# make fuzz           reads 24,500 damaged files and answers 4,000 damaged requests; make test tries 612 and 100 of them
# make lint           runs ruff
# make test-versions  runs the quick tests on the Pythons and the TensorFlow that .ci/run leaves out
# All make a virtual environment first; PYTHON=python3.7 chooses TensorFlow 1.15, python3.10 to 3.13 TensorFlow 2.x.

PYTHON ?= python3
VENV ?= .venv
# What a new environment installs instead of the TensorFlow of requirements.txt, for example tensorflow==2.16.*
TENSORFLOW ?=

SERVES := 3.7 3.10 3.11 3.12 3.13
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
# Stamps carry both versions, so that another PYTHON or TENSORFLOW makes the environment anew.
BOTH := $(VERSION)$(if $(TENSORFLOW),-$(subst *,,$(subst =,,$(TENSORFLOW))))
MADE := $(VENV)/.made-$(BOTH)
READY := $(VENV)/.ready-$(BOTH)
READY_TO_TEST := $(VENV)/.ready-to-test-$(BOTH)
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --quiet
PYTEST := $(VENV)/bin/python -m pytest
PARALLEL := -n auto --maxprocesses 4 --dist loadgroup

# The newest training, and who moves how in toy-gif: numbers of images of data/toy.
RUN ?= $(patsubst %/checkpoints/checkpoint,%,$(shell ls -t log/*/checkpoints/checkpoint 2>/dev/null | head -n 1))
PERSON ?= 6089
POSES ?= 6062 6008 6034 6083 6063 6062

.PHONY: train page toy-gif test test-fast fuzz lint test-versions clean check-python

train: $(READY) data/toy/index.p
	$(VENV)/bin/python main.py --config toy.yaml

page: $(READY)
	@test -n "$(RUN)" || { echo "error: there is no training in log/: make train first" >&2; exit 2; }
	$(VENV)/bin/python main.py --mode page --checkpoint "$(RUN)"

toy-gif: $(READY) data/toy/index.p
	@test -n "$(RUN)" || { echo "error: there is no training in log/: make train first" >&2; exit 2; }
	$(VENV)/bin/python main.py --config toy.yaml --mode animate --checkpoint "$(RUN)" --appearance $(PERSON) --pose $(POSES) --fps 20 \
	  --seconds_per_pose 0.8 --log_dir log/toy-gif
	cp $$(ls -td log/toy-gif/*/animation.gif | head -n 1) docs/toy.gif

test: $(READY_TO_TEST)
	$(PYTEST) $(PARALLEL) tests

test-fast: $(READY_TO_TEST)
	$(PYTEST) $(PARALLEL) -m "not slow" tests

fuzz: $(READY_TO_TEST)
	VUNET_FUZZ_CASES=12000 $(PYTEST) $(PARALLEL) tests/test_fuzz.py tests/test_page.py::test_hostile_requests

lint: $(READY_TO_TEST)
	$(VENV)/bin/python -m ruff check .

test-versions:
	.ci/test-versions

data/toy/index.p: tools/make_toy.py dataset/toy.py | $(READY)
	$(VENV)/bin/python tools/make_toy.py --out data/toy

$(READY_TO_TEST): requirements-test.txt requirements-photos.txt $(READY)
	$(PIP) install -r requirements-test.txt
	$(if $(filter 3.1%,$(VERSION)),$(PIP) install --no-deps -r requirements-photos.txt)
	@touch $@

$(READY): requirements.txt | $(MADE)
	@echo "installing TensorFlow and the other requirements into $(VENV), a few minutes"
	sed '$(if $(TENSORFLOW),/^tensorflow/d)' requirements.txt | $(PIP) install -r /dev/stdin $(if $(TENSORFLOW),"$(TENSORFLOW)")
	@touch $@

$(MADE): | check-python
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --upgrade pip
	@touch $@

check-python:
	@case " $(SERVES) " in *" $(VERSION) "*) ;; *) \
	  echo "error: PYTHON=$(PYTHON) is $(if $(VERSION),Python $(VERSION),not there); expected one of Python $(SERVES), for example: make train PYTHON=python3.11" >&2; exit 2;; esac

# Leaves data/ and log/ alone.
clean:
	rm -rf $(VENV) .venv-test-* .pytest_cache .ruff_cache
