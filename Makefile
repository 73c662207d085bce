# What one wants, and nothing else. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RECIPE ?= mini-128
RUN ?= runs/$(RECIPE)

.DEFAULT_GOAL := help
.PHONY: help demo serve export backends test lint types unit proto proto-baseline aot gpu gpu-tests gpu-benchmarks gpu-backends \
        quality quality-reader overlap windows simulation bench-server overhead soak train-mini train-identity-encoders \
        train-adapter train-controlnet quality-judge quality-identity discovery-figure bench-stories quality-methods \
        long-story clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 26

$(VENV)/.server $(VENV)/.dev: pyproject.toml scripts/install.sh
	@PYTHON=$(PYTHON) scripts/install.sh $(VENV) $(patsubst $(VENV)/.%,%,$@)

demo: $(VENV)/.server  ## start the server, make both example stories, write the pictures to out/
	@$(BIN)/python scripts/demo.py --out out

serve: $(VENV)/.server  ## serve the built-in model on port 50051
	@$(BIN)/storyloom serve --model weights/storyloom-mini

export: $(VENV)/.dev  ## export the built-in model to ONNX beside its package, and verify it
	@$(BIN)/storyloom-export onnx weights/storyloom-mini
	@$(BIN)/storyloom-export verify weights/storyloom-mini

backends: $(VENV)/.dev  ## measure the backends side by side on the CPU
	@$(BIN)/python -m benchmarks.export.backends

test: lint types unit  ## everything: lint, types, proto checks, unit, property and end-to-end tests

lint: $(VENV)/.dev  ## style, import directions, protos
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_proto.py

types: $(VENV)/.dev  ## mypy, strict
	$(BIN)/mypy kernels/storyloom_kernels model/storyloom_model training/storyloom_training export/storyloom_export \
	    server/storyloom_server clients/python/storyloom benchmarks scripts

# A process for each core: files run side by side, the tests of one file one after another.
unit: $(VENV)/.dev  ## pytest
	$(BIN)/python -m pytest --numprocesses logical --dist loadfile

proto: $(VENV)/.dev  ## generate the Python code of proto/ anew
	$(BIN)/python scripts/generate_proto.py

proto-baseline: $(VENV)/.dev  ## accept the present protos as the contract that later ones must not break
	$(BIN)/python scripts/check_proto.py --update-baseline

aot: $(VENV)/.dev  ## compile every kernel for every architecture and print what it takes; needs no GPU
	PYTHONPATH=kernels $(BIN)/python -m storyloom_kernels.aot

# On the machine with the GPU, with the Python that has a CUDA build of torch: make gpu GPU_PYTHON=python3
# (make -k gpu: the benchmarks even where a test fails.)
GPU_PYTHON ?= $(BIN)/python
gpu: gpu-tests gpu-benchmarks  ## on a GPU: tests of kernels and of the engine's graphs, then benchmarks into benchmarks/results/

# A process for each file, since most of their time is the compiler's.
gpu-tests:
	printf '%s\n' tests/kernels/test_*.py tests/model/test_model_cuda.py | \
	    PYTHONPATH=kernels:model:. xargs -P 16 -n 1 timeout 300 $(GPU_PYTHON) -m pytest -q -m "not slow"

gpu-benchmarks:
	PYTHONPATH=kernels:model:. $(GPU_PYTHON) -m benchmarks.kernels.run --seconds 240

gpu-backends:  ## on a GPU: torch, ONNX Runtime and TensorRT side by side, whichever can be imported
	PYTHONPATH=kernels:model:export:server:clients/python:. $(GPU_PYTHON) -m benchmarks.export.gpu

quality: $(VENV)/.dev  ## measure prompt agreement, consistency and background diversity (about 8 minutes on two cores)
	$(BIN)/python -m benchmarks.quality.run --stories 50 --dtype bfloat16

quality-reader: $(VENV)/.dev  ## train the attribute reader that `make quality` uses
	$(BIN)/python -m benchmarks.quality.reader

overlap: $(VENV)/.dev  ## measure two overlapping stories against one
	$(BIN)/python -m benchmarks.latency.overlap

windows: $(VENV)/.dev  ## measure a 200-frame story: does a frame cost the same from first to last
	$(BIN)/python -m benchmarks.latency.windows

bench-server: simulation  ## the server under open-loop load, and the same for the scheduler on simulated devices
	$(BIN)/python -m benchmarks.server.run

overhead: $(VENV)/.dev  ## what the server costs beside the model, and the lag of its event loop
	$(BIN)/python -m benchmarks.server.overhead

soak: $(VENV)/.dev  ## half an hour of mixed traffic: do memory, files and threads stay where they are?
	$(BIN)/python -m benchmarks.server.soak

simulation: $(VENV)/.dev  ## the scheduler against one story at a time and request batching, on simulated devices
	$(BIN)/python -m benchmarks.server.simulate

train-mini: $(VENV)/.dev  ## train the built-in model; RECIPE=mini-256: 256x256 on a GPU; START=PACKAGE: train on from it
	$(BIN)/python -m storyloom_training $(RECIPE) --folder $(RUN) $(if $(START),--start $(START))

train-identity-encoders: $(VENV)/.dev  ## train what looks at references: faces, image encoder, segmenter
	@$(BIN)/python -m storyloom_training.identity

quality-judge: $(VENV)/.dev  ## train the face recogniser that judges identities
	@$(BIN)/python -m benchmarks.quality.judge_training

METHOD ?= storynizor
train-adapter: $(VENV)/.dev  ## train an identity adapter; METHOD=ip-adapter, photomaker, instantid, storymaker or an ablation, RUN=folder of train-mini, CONTROLNET=folder of train-controlnet's
	@$(BIN)/python -m storyloom_training.identity.adapters $(METHOD) --recipe $(RECIPE) --rendered $(RUN) \
	    $(if $(CONTROLNET),--controlnet $(CONTROLNET))

train-controlnet: $(VENV)/.dev  ## train a pose ControlNet for the built-in model, and put it in; RUN=folder of train-mini
	@$(BIN)/python -m storyloom_training.controlnet --recipe $(RECIPE) --rendered $(RUN)

quality-identity: $(VENV)/.dev  ## measure whether the person of a reference picture comes back: a judge's cosines, attributes, text
	$(BIN)/python -m benchmarks.identity.run $(ARGS)

discovery-figure: $(VENV)/.dev  ## measure identity discovery: held-out candidates against both means, frames with what was found (under a minute a person on two cores; goes on where it was stopped)
	$(BIN)/python -m benchmarks.identity.discovery $(ARGS)

bench-stories: $(VENV)/.dev  ## make and score the stories of a benchmark: ARGS="FILE_OR_FOLDER --methods none,amsa-mask"
	@$(BIN)/python -m benchmarks.stories $(ARGS)

COMPARED := none amsa amsa-mask storydiffusion consistory oneprompt story-adapter \
    ip-adapter photomaker instantid character-adapter fastcomposer storynizor storymaker identitystory
# Where the second pass starts, how far masks grow, and ConsiStory without what its code adds to the paper's attention.
ABLATIONS := $(patsubst %,identitystory@redenoising.start=%,0 0.1 0.4 0.6) \
    $(patsubst %,identitystory@redenoising.mask_growth=%,0 64) \
    consistory@consistency.feature_injection=false+freeu.enabled=false
# The built-in model with an adapter for each of them.
ALL := runs/storyloom-mini-all
$(ALL)/storyloom.yaml: $(shell find weights -type f) benchmarks/stories/others.py | $(VENV)/.dev
	@$(BIN)/python -m benchmarks.stories.others $(ALL)

quality-methods: $(VENV)/.dev $(ALL)/storyloom.yaml  ## every method in one table, with ablations, on held-out people (about 45 minutes on two cores)
	@$(BIN)/python -m benchmarks.stories held-out --people 1 --stories 20 --steps 12 --no-described --model $(ALL) \
	    --methods "$(COMPARED) $(ABLATIONS)" --out runs/methods-1 $(ARGS)
	@$(BIN)/python -m benchmarks.stories held-out --people 2 --stories 12 --steps 12 --no-described --model $(ALL) \
	    --methods "$(COMPARED)" --out runs/methods-2 $(ARGS)

long-story: $(VENV)/.dev  ## 200 frames: the same person, and the same cost of a frame, from first to last? ARGS="--methods amsa-mask"
	@$(BIN)/python -m benchmarks.long $(ARGS)

clean:  ## remove the environment and what the demo wrote
	rm -rf $(VENV) out
