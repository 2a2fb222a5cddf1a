# Two commands on a fresh machine: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OFFLINE := --preset hparams/presets/offline.yaml
EMODB ?= ../shared/data/emodb
DATA ?= ../shared/data
# Folders of trained models, named as on the hub.
MODELS ?= $(HOME)/.cache/emoq-models
CORPUS ?= emodb4
ON_EMODB := --preset hparams/presets/cpu.yaml --preset recipes/EMODB/$(CORPUS).yaml \
    --data_folder $(EMODB) --audio_source $(MODELS)/whisper-base --fold all

.PHONY: demo demo-modalities emodb emodb-trained bench upstream api test install

# Stage 1, stage 2 and the evaluation on the synthesized corpus, on a CPU.
demo: install
	$(BIN)/python train.py hparams/emoq_stage2.yaml $(OFFLINE) \
	    --preset recipes/demo/demo.yaml

# The voice alone, the words alone, both: about three times a demo.
demo-modalities: install
	$(BIN)/python recipes/demo/modalities.py

# Real speech: EMO-DB, four classes, both stages, all five folds, on a CPU.
emodb: install
	$(BIN)/python train.py hparams/emoq_stage2.yaml $(OFFLINE) \
	    --preset recipes/EMODB/emodb4.yaml --data_folder $(EMODB) --fold all

# The same on trained models, and a linear probe of the same frames beside it.
emodb-trained: install
	$(BIN)/emoq probe $(ON_EMODB)
	$(BIN)/python train.py hparams/emoq_stage2.yaml $(ON_EMODB) \
	    --text_encoder $(MODELS)/all-MiniLM-L6-v2 \
	    --llm $(MODELS)/SmolLM2-135M-Instruct

# How many times faster than transformers and peft alone; DATA has MELD's
# annotation and clip durations. Writes bench.json.
bench: install
	$(BIN)/python -m benchmarks.bench --data $(DATA)

# The contribution to SpeechBrain, as branches of the clone CHECKOUT, and that
# project's checks of each.
upstream: install
	$(BIN)/python upstream/lay.py $(CHECKOUT)

# The reference of emoq_modules as web pages, made of its docstrings.
api: install
	$(BIN)/python -m sphinx -W --keep-going -E -q docs/api docs/api/_build
	@echo The reference is in docs/api/_build/index.html

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadfile

install: $(VENV)/.installed

$(VENV)/.installed: setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.11.0 torchaudio==2.11.0
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@
