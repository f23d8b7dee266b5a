# Two commands do everything on a fresh machine: `make serve` and `make test`. `make` alone lists the rest.

PYTHON ?= python3
VENV ?= .venv
DEVICE ?= auto
SETUP ?= yes

# What `make serve` and `make ask` take.
TARGET ?= demo/pair/target
DRAFT ?= demo/pair/draft
SPEC ?= lvspec
PORT ?= 30000
DTYPE ?=
ARGS ?=
ifndef URL
URL := http://127.0.0.1:$(PORT)
endif
MODEL ?=
VIDEO ?=
IMAGE ?=
Q ?=
TOKENS ?= 256
PLAY_PORT ?= 8765

# What `make test` takes: processes that share the tests; 0 is pytest as it is.
WORKERS ?= $(if $(ARGS),0,2)

# What `make bench-fidelity` takes.
N ?= 60
URL1 ?=
MINUTES ?= 10
SEED ?= 0
THREADS ?= 1

# What `make gpu-test` and `make gpu-bench` take: a Python with torch and Triton (and pytest and hypothesis for the tests).
GPU_PYTHON ?= $(if $(wildcard $(venv_python)),$(venv_python),$(PYTHON))

venv_python := $(VENV)/bin/python
# One shell word, whatever the variable holds: questions have apostrophes.
quoted = '$(subst ','\'',$(value $(1)))'
flag = $(if $(value $(2)),$(1) $(call quoted,$(2)))

.DEFAULT_GOAL := help
.PHONY: help setup environment serve ask explain play doctor test loadtest loadtest-ui bench-fidelity bench-context bench-speed bench-round gpu-test gpu-bench torture audit fuzz upgrades planted-bugs check fmt demo-pair clean

help:  ## List the targets
	@echo 'sgl-lvspec: speculative decoding for video LLMs in SGLang'
	@echo
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-17s %s\n", $$1, $$2 }'
	@echo
	@echo '  serve: PORT=$(PORT) SPEC=lvspec|none TARGET=path DRAFT=path DTYPE=float32 ARGS="more flags of sglang.launch_server"'
	@echo '  ask:   VIDEO=clip.mp4 | IMAGE=still.png | VIDEO=none   Q="first question | second question"   URL= MODEL= TOKENS='
	@echo '  loadtest: OUT=build/loadtest C=5 ARGS="--ttft-ms 500 --tpot-ms 40 --url ARM=URL" TARGET= DRAFT= DTYPE=, too; loadtest-ui: URL='
	@echo '  bench-fidelity: N=$(N) OUT=build/fidelity.json THREADS=$(THREADS) URL1=server, too'
	@echo '  bench-context: OUT=build/context.json ARGS="--clips 2 --frames 12 --policies uniform specvlm --keeps 1 0.1"'
	@echo '  all:   PYTHON=python3.12 VENV=folder DEVICE=auto|cpu|cuda; SETUP=no takes the environment at VENV as it is'

setup:  ## Build the environment in .venv (every other target does it when needed)
	@$(PYTHON) -m tools.environment --venv $(VENV) --device $(DEVICE)

environment:
ifneq ($(SETUP),no)
	@$(PYTHON) -m tools.environment --venv $(VENV) --device $(DEVICE) --quiet
endif

serve: environment  ## Serve the demo pair with LVSPEC on 127.0.0.1:30000
	@$(venv_python) -m demo.serve --target $(call quoted,TARGET) --draft $(call quoted,DRAFT) --spec $(call quoted,SPEC) \
		--port $(call quoted,PORT) $(call flag,--dtype,DTYPE) -- $(ARGS)

ask: environment  ## Ask the running server about a clip, an image or nothing but the text
	@$(venv_python) -m demo.ask --url $(call quoted,URL) --max-tokens $(call quoted,TOKENS) $(call flag,--model,MODEL) \
		$(call flag,--video,VIDEO) $(call flag,--image,IMAGE) $(call flag,--question,Q)

explain: environment  ## Ask the running server about VIDEO and show what was loosened (ARGS="--preset paper")
	@$(VENV)/bin/lvspec explain $(if $(VIDEO),$(call quoted,VIDEO),demo/clips/two-events.mp4) $(if $(value Q),$(call quoted,Q)) \
		--url $(call quoted,URL) $(ARGS)

play: environment  ## A page beside the running server where one sees what was loosened (PLAY_PORT=8765)
	@$(VENV)/bin/lvspec play --url $(call quoted,URL) --port $(call quoted,PLAY_PORT) --clips demo/clips \
		--max-tokens $(call quoted,TOKENS) $(ARGS)

doctor: environment  ## Check versions, seams and models in one screen
	@$(VENV)/bin/lvspec doctor

test: environment  ## Run all tests in two processes; ARGS="-k word path" runs some of them, in one
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(venv_python) -m pytest --numprocesses $(WORKERS) $(ARGS)

loadtest: environment  ## Video-chat traffic to each arm in turn; writes OUT/report.html (C=5: a target that costs 5 drafts)
	@$(venv_python) -m loadtest --target $(call quoted,TARGET) --draft $(call quoted,DRAFT) \
		$(call flag,--out,OUT) $(call flag,--dtype,DTYPE) $(call flag,--cost-ratio,C) $(ARGS)

loadtest-ui: environment  ## Locust's own page on 127.0.0.1:8089, against a running server (URL=)
	@$(venv_python) -m loadtest.ui --url $(call quoted,URL) -- $(ARGS)

bench-fidelity: environment  ## Measure on N held-out clips what loose verification keeps; writes OUT, .md and .svg
	@OMP_NUM_THREADS=$(call quoted,THREADS) $(venv_python) -m bench.fidelity --clips $(call quoted,N) \
		--out $(or $(OUT),build/fidelity.json) --threads $(call quoted,THREADS) $(call flag,--url,URL1) $(ARGS)

bench-context: environment  ## Cost and gain of each context policy and keep ratio on running servers; writes OUT, .md and .svg
	@$(venv_python) -m bench.context --out $(or $(OUT),build/context.json) $(ARGS)

bench-speed: environment  ## How much faster answers come, beside the cost model's ceiling; writes OUT, .md and .svg
	@$(venv_python) -m bench.speed --out $(or $(OUT),build/speed.json) $(ARGS)

bench-round: environment  ## Cost of scoring and rule beside a real-size verify forward (OUT=file.json)
	@OMP_NUM_THREADS=1 $(venv_python) -m bench.round_cost --out $(or $(OUT),build/round_cost.json) $(ARGS)

gpu-test:  ## The kernels' tests with compiled kernels on the GPU (GPU_PYTHON with torch, Triton, pytest, hypothesis)
	@PYTHONPATH=triton_kernels:. $(GPU_PYTHON) -m bench.gpu.kernel_tests $(ARGS)

gpu-bench:  ## Speed of each kernel beside the GPU's memory, share of a round (OUT=file.json; ARGS=--tune tries sizes)
	@TRITON_INTERPRET=0 PYTHONPATH=triton_kernels:. $(GPU_PYTHON) -m bench.gpu.run \
		--out $(or $(OUT),build/gpu.json) $(ARGS)

torture: environment  ## MINUTES of hostile traffic on a sabotaged server, judged (SEED= OUT=; ARGS="--replay file.json")
	@$(venv_python) -m bench.torture --minutes $(call quoted,MINUTES) --seed $(call quoted,SEED) \
		--out $(or $(OUT),build/torture.json) $(ARGS)

fuzz: environment  ## N odd requests to a server, each judged (SEED= OUT=; ARGS="--only 17" replays one)
	@$(venv_python) -m bench.fuzz --requests $(if $(filter file,$(origin N)),2000,$(call quoted,N)) \
		--seed $(call quoted,SEED) --out $(or $(OUT),build/fuzz.json) $(call flag,--url,URL1) $(ARGS)

upgrades: environment  ## Compare every seam with neighbouring SGLang releases (ARGS="--run 0.5.22" runs strict tests on one)
	@$(venv_python) -m tools.upgrades --out $(or $(OUT),build/upgrades/upgrades.json) $(ARGS)

planted-bugs: environment  ## Plant one bug after the other: its test must see it (ARGS="--servers", ARGS="--only ranks")
	@$(venv_python) -m tools.planted_bugs --out $(or $(OUT),build/planted-bugs.md) $(ARGS)

check: environment  ## Lint, formatting, types and the rules of the layout
	@failed=0; \
	$(venv_python) -m ruff check --output-format concise || failed=1; \
	$(venv_python) -m ruff format --quiet --check || { echo 'formatting differs: make fmt'; failed=1; }; \
	$(venv_python) -m mypy $(wildcard sgl_lvspec loadtest) tools demo/ask.py demo/serve.py || failed=1; \
	$(venv_python) -m tools.check_layout || failed=1; \
	exit $$failed

fmt: environment  ## Format the code and repair what the linter can
	@$(venv_python) -m ruff check --fix --exit-zero
	@$(venv_python) -m ruff format

demo-pair: environment  ## Train the demo pair anew (ARGS= go to demo.train)
	@$(venv_python) -m demo.train $(ARGS)

audit: environment  ## Look up known vulnerabilities of everything that is pinned (ARGS="--device cpu --service osv")
	@$(venv_python) -m tools.audit $(ARGS)

clean:  ## Remove what make made: .venv, caches, build output
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis dist *.egg-info cpu_engine/src/*.egg-info
	rm -rf build/lib build/bdist.* cpu_engine/build  # build/demo-pair stays: its checkpoints took an hour
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
