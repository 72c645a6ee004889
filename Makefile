# Every command needs nothing but Python, make and the package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: bench-plan test-spread test-zero demo demo-vision test test-all test-rest test-gpu quick mutants check format bench bench-gpu clean help
help:
	@echo "make demo      train the embedded example and show that it worked"
	@echo "make demo-vision  train a model of images on digits, merge it, show what it takes for what (a minute or two)"
	@echo "make test      run the tests: of products of parameters, such as method by layer by storage, all pairs"
	@echo "make test-all  run the whole products"
	@echo "make test-gpu  every method and every kernel on the GPU; skipped, with the reason, without one"
	@echo "make test-spread  every method on bases that are spread over two processes (minutes)"
	@echo "make test-zero  every method with DeepSpeed's engine in two processes; installs it (a quarter of an hour)"
	@echo "make quick     a first answer in less than a minute: every method, every kind of layer, every storage once"
	@echo "make mutants   which small faults the tests would notice, on a sample (a quarter of an hour)"
	@echo "make check     ruff and mypy"
	@echo "make bench     measure against the reference and the floor (about half an hour on two cores)"
	@echo "make bench-plan  how far the plan is from what forty runs take (half an hour; goes on where it was stopped)"
	@echo "make bench-gpu the same on a GPU, beside other tools that are installed (five minutes)"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(READY)
	$(BIN)/afina train tweets $(DEMO_ARGS)

demo-vision: $(READY)
	$(BIN)/afina train digits --live --overwrite $(DEMO_ARGS)
	$(BIN)/afina merge runs/digits runs/digits-merged --overwrite
	@sed -n '/^## Results/,$$p' runs/digits/README.md

# One thread a worker: two workers on two cores are faster than one worker with two threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations=30

test: $(READY)
	$(PYTEST) $(TEST_ARGS)

test-all: $(READY)
	$(PYTEST) --size all $(TEST_ARGS)

# Of what `make test` leaves out one part: PART=0, 1 or 2.
test-rest: $(READY)
	$(PYTEST) --part $(PART) $(TEST_ARGS)

# One process: the GPU is shared by all of them.
test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu --size all -rs --durations=10 tests/battery/test_device.py tests/kernels tests/train/loop/test_placed.py $(TEST_ARGS)

quick: $(READY)
	$(PYTEST) --size smoke tests/battery tests/core tests/test_*.py \
	  --deselect tests/battery/test_whole.py::test_another_process_reads_the_same $(TEST_ARGS)

mutants: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt cosmic-ray
	$(BIN)/python scripts/mutants.py $(MUTANTS_ARGS)

check: $(READY)
	$(BIN)/ruff check src tests benchmarks scripts
	$(BIN)/ruff format --check src tests benchmarks scripts
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m benchmarks $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.ecosystem

# Every method, option and shape of model in two processes with a part of the base each.
test-spread: $(READY)
	AFINA_SPREAD=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --size all tests/battery/test_spread.py

# DeepSpeed in an environment of its own over .venv; without isolation, which would get a torch only to build with.
$(VENV)-zero/.ready: $(READY)
	$(PYTHON) -m venv $(VENV)-zero
	$(VENV)-zero/bin/python -c "import pathlib, site; here = pathlib.Path(site.getsitepackages()[0]); \
	  (here / 'below.pth').write_text(str(pathlib.Path('$(VENV)', *here.parts[-3:]).absolute()))"
	$(VENV)-zero/bin/python -m pip install --quiet --disable-pip-version-check setuptools wheel ninja
	DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(VENV)-zero/bin/python -m pip install --quiet --disable-pip-version-check \
	  --no-build-isolation -c constraints.txt deepspeed
	@touch $@

# Every method with ZeRO-2 and ZeRO-3 in two processes, and recipes with them.
test-zero: $(VENV)-zero/.ready
	PATH="$(abspath $(VENV))-zero/bin:$$PATH" DS_ACCELERATOR=cpu AFINA_ZERO=1 OMP_NUM_THREADS=1 \
	  $(VENV)-zero/bin/python -m pytest --size all tests/battery/test_zero.py tests/train/loop/test_zero.py $(TEST_ARGS)

# One thread, because the plan's times are held to the process's own seconds.
bench-plan: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.plan $(BENCH_ARGS)

bench-gpu: $(READY)
	$(BIN)/python -m benchmarks.gpu $(BENCH_ARGS)

# Also renews docs/methods.md, docs/api.md, docs/conversations.md, docs/learning-rates.md and the type stub, which tests
# compare with the code.
format: $(READY)
	$(BIN)/python scripts/methods_table.py
	$(BIN)/python scripts/api_page.py
	$(BIN)/python scripts/conversations_page.py
	$(BIN)/python scripts/rates_page.py
	$(BIN)/ruff check --fix src tests benchmarks scripts
	$(BIN)/ruff format src tests benchmarks scripts

clean:
	rm -rf $(VENV) $(VENV)-zero dist build
